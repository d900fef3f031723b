"""What the methods share that score every neuron by a derivative of the loss and remove the lowest of the network."""

from dataclasses import dataclass
from typing import Any, ClassVar

from demp.files.checks import check_at_least, check_share
from demp.importance.gates import GatePosition, Scoring, ScoringKind
from demp.methods.base import Method, MethodConfig, Requirements, Selection, View
from demp.methods.reaching import reach, refuse_two_aims
from demp.methods.rounds import targets


@dataclass(frozen=True, kw_only=True)
class ScoredConfig(MethodConfig):
    """Target and scoring; the defaults are those of the DemP paper's own runs of these methods."""

    target_neuron_sparsity: float = 0.5
    """rho: share of all neurons that is removed in the end."""
    scoring_batches: int = 10
    """Training batches behind each score; the originals take 5."""
    gate: GatePosition = "activation"
    """Where the factor c = 1 on a neuron multiplies: its output (``activation``), its ``norm``'s output, or what its
    ``producer`` gives, before the norm, as in the original repositories."""
    batch_statistics: bool = False
    """Score with each batch's own statistics in batch norms, as in training, instead of the running ones. Before
    training the running ones are still 0 and 1."""
    rounds: int = 5
    """n: the first round goes to ``start_sparsity``, each of n more half of the way that is left, a last one to the
    target; all at one moment, each scored on what is left. 0: at once."""
    start_sparsity: float = 0.5
    """Neuron sparsity after the first round; a target not above it is reached in one round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("target_neuron_sparsity", self.target_neuron_sparsity)
        refuse_two_aims(self, 0.5)
        check_share("start_sparsity", self.start_sparsity)
        check_at_least("scoring_batches", self.scoring_batches, 1)
        check_at_least("rounds", self.rounds, 0)


class Scored(Method):
    """Before training: in each round scores, then the neurons with the lowest |score| of the whole network go.

    The ranking is exact: it removes as many neurons as the target says and breaks ties in the order of the network. The
    authors of DemP remove those strictly below a percentile, so that ties stay.
    """

    Config: ClassVar[type[MethodConfig]] = ScoredConfig
    takes_budget: ClassVar[bool] = True
    config: ScoredConfig

    def __init__(self, config: ScoredConfig, total_steps: int) -> None:
        super().__init__(config, total_steps)
        self.targets = targets(config.target_neuron_sparsity, config.start_sparsity, config.rounds)
        self._round = 0

    def kind(self) -> ScoringKind:
        """Which derivative is the score: see ``demp.importance.gates``."""
        raise NotImplementedError

    def scoring(self) -> Scoring:
        """The score as the config has it."""
        config = self.config
        return Scoring(
            kind=self.kind(), at=config.gate, batches=config.scoring_batches, batch_statistics=config.batch_statistics
        )

    @property
    def done(self) -> bool:
        """Has every round taken place?"""
        return self._round >= len(self.targets)

    def requirements(self) -> Requirements:
        """Labelled batches and a loss."""
        return Requirements(scores=True)

    def is_due(self, step: int) -> bool:
        """Return whether this is step 0, before training."""
        return step == 0

    def again(self, step: int) -> bool:
        """Rounds follow each other at once."""
        return 0 < self._round < len(self.targets)

    def select(self, step: int, view: View) -> Selection:
        """Select the neurons of one round, those with the lowest scores."""
        if self.done:
            return Selection()
        config, target = self.config, self.targets[self._round]
        scores = view.scores(self.scoring()).abs()
        way = target / config.target_neuron_sparsity
        neurons, notes = reach(view, config, scores, way=way)
        self._round += 1
        if len(self.targets) > 1:
            aim = f"neuron sparsity {target:g}" if config.budget is None else f"{way:.3g} of the way to the budget"
            notes = (f"round {self._round} of {len(self.targets)}, to {aim}", *notes)
        return Selection(neurons, exact=False, notes=notes)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of rounds that are done."""
        return {"round": self._round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the number of done rounds from a saved state."""
        self._round = int(state["round"])
