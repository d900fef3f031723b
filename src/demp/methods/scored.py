"""What the methods share that score every neuron by a derivative of the loss and remove the lowest of the network."""

from dataclasses import dataclass
from typing import Any, ClassVar

from demp.files.checks import check_at_least, check_share
from demp.importance.gates import GatePosition, Scoring, ScoringKind
from demp.methods.base import Method, MethodConfig, Requirements, Selection, View
from demp.methods.reaching import TargetConfig, neuron_sparsity_of, reach
from demp.methods.rounds import targets


@dataclass(frozen=True, kw_only=True)
class ScoredConfig(TargetConfig):
    """Target and scoring; the defaults are those of the DemP paper's own runs of these methods."""

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
        self._aim_at(config.target_neuron_sparsity)
        self._round = 0

    def _aim_at(self, rho: float) -> None:
        """Set the neuron sparsity that the rounds go to; with a budget it is known once the network is."""
        self.rho, self.targets = rho, targets(rho, self.config.start_sparsity, self.config.rounds)
        self._aimed = False

    def _settle(self, view: View) -> None:
        """With a budget: the neuron sparsity that it stands for in this network."""
        if self.config.budget is not None and not self._aimed:
            self._aim_at(neuron_sparsity_of(view, self.config, self.config.budget))
            self._aimed = True

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
        """Return that labelled batches and a loss are needed for the scores."""
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
        self._settle(view)
        config, target = self.config, self.targets[self._round]
        scores = view.scores(self.scoring()).abs()
        way = target / self.rho
        neurons, notes = reach(view, config, scores, way=way)
        self._round += 1
        if len(self.targets) > 1:
            aim = f"neuron sparsity {target:g}" if config.budget is None else f"{way:.3g} of the way to the budget"
            notes = (f"round {self._round} of {len(self.targets)}, to {aim}", *notes)
        return Selection(neurons, exact=False, notes=notes)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of rounds that are done, and the neuron sparsity that they go to."""
        return {"round": self._round, "rho": self.rho if self._aimed else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the number of done rounds from a saved state."""
        self._round = int(state["round"])
        if state.get("rho") is not None:
            self._aim_at(float(state["rho"]))
            self._aimed = True
