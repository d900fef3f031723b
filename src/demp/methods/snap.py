"""SNAP: before training, the neurons to whose outputs the loss is least sensitive go.

|sum over batches of dL/dc_j| at c = 1, where the gate c_j multiplies the output of neuron j (see
``demp.importance.gates``).

The original (Verdenius et al. 2020; code of Rachwan et al. 2022) gates before the norm (``gate="producer"``), takes 5
batches of what its trainer calls the test set, and the negative log-likelihood of raw network outputs; the ranking
depends on all three. Here the loss is the ``loss_fn`` that the pruner is given, on training examples.

**Residual networks whose branches start as zero.** Where the last scale of every residual branch is initialised with 0,
the loss does not depend on anything inside a branch: each of those scores is exactly 0, and SNAP removes all of the
branches' neurons (down to the floor) before it looks at any other. In ResNet-50 these are 7,552 of 22,720 neurons and
81 % of the weights, which is what the DemP paper reports for SNAP and CroPit-S (81.4 % of the weights, 26 to 28 %
accuracy). It is a property of the initialisation: with ``zero_init_last_scale=False``, the default of
``demp.train.models``, the branches have scores of their own, and that is the fair comparison. The recipe of the paper
sets it to True.
"""

from typing import ClassVar

from demp.importance.gates import ScoringKind
from demp.methods.scored import Scored


class Snap(Scored):
    """Sensitivity of the loss to a factor on each neuron, before training."""

    name: ClassVar[str] = "snap"
    summary: ClassVar[str] = "before training, the neurons that the loss is least sensitive to go"
    reference: ClassVar[str] = "Pruning via Iterative Ranking of Sensitivity Statistics (Verdenius et al. 2020)"

    def kind(self) -> ScoringKind:
        """Return the kind of derivative: the sensitivity dL/dc."""
        return "sensitivity"
