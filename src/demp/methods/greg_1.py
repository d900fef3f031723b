"""GReg-1, Wang et al. 2021: the neurons with the smallest weights are pushed to zero by a growing L2 penalty.

``start_at``:    the filters with the smallest L1 norm are picked; each has a factor lambda_c = 0
every K_u steps: lambda_c grows by delta, for those that were picked only, until it is tau
every step:      gradient of the loss + lambda_c * w on the weights that make neuron c
``stabilise``:   the factors stay at tau, then the picked neurons go and the rest of the run fine-tunes

The paper starts from a trained network and adds these phases to its budget. Here all of it shares one run from scratch:
the first ``start_at`` trains plainly, and the growth takes as many steps as its share says, with several updates in one
step if it must; ``update_every`` gives the paper's clock. Its code leaves the first convolution, the last one of every
block, shortcuts and linear layers alone; here every layer takes part that is not excluded: give ``exclude`` the layers
after the sums to leave residual streams as they are. What a pushed channel of a stream carried from earlier blocks is
not pushed, and is cut off with it. Factors act on weights alone, not on norms and biases. The code's early end of the
growth (kept weights a thousand times as large as the picked ones) is left out.

A weight shrinks by about learning rate * lambda_c in each step. Behind a batch norm its gradient grows as it does, so
that it comes to rest at a size that falls with the fourth root of learning rate / lambda_c, until the norm's eps is
felt. The paper pushes with a rate of 0.001; at the rates of a run from scratch the picked neurons stay well above zero
and the cut is felt. ``stabilise`` where the rate is low, or a higher ``ceiling``, helps.
"""

from typing import ClassVar

from demp.methods.growing import GrowingConfig, GrowingRegularisation, Ramp


class GReg1(GrowingRegularisation):
    """Growing L2 on the neurons with the smallest weights."""

    name: ClassVar[str] = "greg-1"
    summary: ClassVar[str] = "neurons with the smallest weights are pushed to zero by a growing L2 penalty, then go"
    reference: ClassVar[str] = "Neural Pruning via Growing Regularization"

    config: GrowingConfig

    def phases(self) -> tuple[Ramp, ...]:
        """Return the only phase, in which the L2 factors grow."""
        c = self.config
        return (self.ramp(self._steps(c.start_at), c.start_at, c.grow, 0.0, c.delta, c.ceiling),)
