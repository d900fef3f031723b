"""Every knob of Demon Pruning, and which of them fit together."""

from dataclasses import dataclass, fields
from typing import Literal

from demp.activity import Criterion, CriterionKind
from demp.errors import UsageError
from demp.files.checks import check_at_least, check_number, check_share
from demp.methods.base import MethodConfig
from demp.methods.course import Phase, check_phase
from demp.methods.reaching import raise_if_two_aims
from demp.regularization import schedules
from demp.regularization.penalties import Penalty, PenaltyKind, PenaltyTarget
from demp.surgery import ConstantRules

WITHOUT_BUDGET = (
    "peak_strength", "penalty", "penalty_on", "penalty_in", "penalty_times_lr", "schedule", "span", "peak_at",
    "peak_noise_std", "noise_schedule", "noise_is_variance", "noise_times_lr", "noise_on", "live_mask", "criterion",
    "eps", "eps_relative", "period", "prune_after", "prune_at_start",
)  # fmt: skip
"""Options of the paper's method, which a budget replaces."""


@dataclass(frozen=True, kw_only=True)
class DemPConfig(MethodConfig):
    """Every knob of DemP; "gap n" points to the table of ambiguities in docs/gaps.md."""

    streams: bool = False
    """Channels of streams between norms (the embedding width of a transformer) may go, too, as in `demp.trace`: those
    that are dead, and with a budget those that it chooses. It needs ``joins``."""
    linear: bool = False
    """Neurons that other weights read before any activation (the bottlenecks of MobileNetV2) may go, too, as in
    `demp.trace`: those that are zero or constant, and with a budget those that it chooses."""
    peak_strength: float = 1e-3
    """lambda: peak of the penalty's strength, a sum over scales that enters the loss (gap 8). Adam takes 10 to 30
    times what SGD takes."""
    penalty: PenaltyKind = "lasso"
    """R: ``lasso`` (``sum |gamma|``, Sec. 3.1) or ``l2`` (half the sum of squares; the paper's Table 1, gap 9)."""
    penalty_on: PenaltyTarget = "scales"
    """``scales``: normalisations that feed removable neurons; ``all-scales``: all of them, as the authors do;
    ``parameters``: everything, bias and head included (Fig. 5, gap 45)."""
    penalty_in: Literal["gradient", "loss", "decoupled"] = "gradient"
    """``gradient``: added to .grad right before the optimizer step, after any clipping; ``loss``: you add
    ``pruner.penalty_loss()`` to your loss, so that it is clipped with it; ``decoupled`` (App. F.5): outside the loss
    and the optimizer's moments, ``gamma <- sign(gamma) max(|gamma| - kappa_t, 0)`` after each step. There
    ``peak_strength`` is ``sum_t kappa_t``, how far a scale goes in the whole run, whatever its rate and length."""
    penalty_times_lr: bool = False
    """Of the decoupled penalty: ``kappa_t`` is learning rate times ``lambda_t``, as decoupled weight decay has it."""
    schedule: schedules.ScheduleName = "one-cycle"
    """lambda_t and sigma_t: ``one-cycle`` (stock cosine), ``one-cycle-linear`` (the paper's text, gap 5),
    ``constant``, ``cosine-decay``, ``warm-up`` (Fig. 4)."""
    span: float = 0.87
    """Share of the run that the schedule spans (gap 6); afterwards it keeps its last value."""
    peak_at: float = 0.3
    """Share of the span at which the one-cycle peaks."""
    peak_noise_std: float = 5e-5
    """sigma: peak of the noise, a standard deviation (gap 1). The paper's, for about 100,000 steps; in a shorter run it
    keeps its ratio to the learning rate, and times sqrt(100,000 / steps) it would move weights as far."""
    noise_schedule: schedules.ScheduleName | None = None
    """Schedule of the noise; None: that of the strength."""
    noise_is_variance: bool = False
    """Read ``peak_noise_std`` as the variance that the paper's text calls it (gap 1)."""
    noise_times_lr: bool = False
    """Multiply the noise by the learning rate (gap 2)."""
    noise_on: Literal["live", "all", "off"] = "live"
    """``live`` neurons (asymmetric noise), ``all`` (symmetric, gap 47), or ``off``."""
    live_mask: Literal["neuron-gradient", "weight-gradient", "last-check"] = "neuron-gradient"
    """What is live (gap 3): ``neuron-gradient``: the neuron's shift has a data gradient in this step;
    ``weight-gradient``: the weight itself has one; ``last-check``: alive at the last check."""
    noise_weights_only: bool = False
    """No noise on scales, shifts and biases (gap 4)."""
    noise_others: bool = True
    """Noise on parameters that make no neurons: head, attention, embeddings (gap 4)."""
    criterion: CriterionKind = "auto"
    """Which neurons go: ``exact`` (zero), ``saturated`` (constant, zero or not), ``negative-only``, ``epsilon``,
    ``sum`` (the authors' code), or ``auto`` by activation (gaps 12 to 14): see `demp.Criterion`."""
    eps: float | None = None
    """Threshold of the ``saturated``, ``epsilon`` and ``sum`` criteria; None: 0.1, 0.01 and 0."""
    eps_relative: bool = True
    """``eps`` in units of the layer's mean peak."""
    collect: Literal["auto", "probe", "window"] = "auto"
    """``probe``: evaluation batches at each check (needs ``batches``; gaps 15 and 16); ``window``: the training
    forwards before each check; ``auto``: the probe if there are batches."""
    window_steps: int | None = None
    """Length of the passive window; None: 12 steps, at most one period."""
    period: int | None = None
    """tau: steps between checks; None: 5 % of the run, at least 1 (gap 17). The paper uses 5,000."""
    dynamic: bool = True
    """Remove neurons while training; False: one cut at the end (Fig. 7)."""
    prune_after: int | None = 0
    """No cut before this many steps (gap 29). None: before the dead neurons of the last layer have stayed dead for
    three checks in a row, or 60 % of the run is done. A budget has its own course."""
    prune_at_start: bool = False
    """Check after the very first step too, as Algorithm 1 reads (gap 18)."""
    max_drift: float | None = 0.02
    """The most that one check of saturated neurons may change the outputs on the proof examples, over their largest
    absolute value: the flattest go first, the rest waits. None: no bound."""
    fold: bool = False
    """Other neurons leave their mean in their readers where that lowers the drift, as saturated ones do (gap 42)."""
    target_neuron_sparsity: float | None = None
    """Stop at this share of removed neurons; until then the strength grows by ``target_growth`` at each check past
    the peak that falls short (App. H.1, gap 43)."""
    target_growth: float = 1.25
    """Factor of the strength per check that misses the target."""
    push_from: float = 0.05
    """With a budget: share of the run after which the first neurons begin to fade."""
    push_until: float | None = None
    """With a budget: share of the run by which it is reached; the rest trains the network that is left. None: 0.2, or
    as much more, up to 0.5, as gives each round of a short run eight steps."""
    rounds: int = 8
    """With a budget: periods of the way to it, each of which chooses, fades and removes."""
    cost_power: float = 1.0
    """With a budget: neurons rank by importance / cost ** cost_power, the cost in what the budget limits."""

    hand_over: bool = True
    """With a budget: what the neurons that stay can say of one that fades moves into the weights that read them (least
    squares on what one step's forwards showed), and neurons rank by what the others of their layer cannot say. False:
    each is taken for itself, and nothing moves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("peak_strength", "peak_noise_std"):
            check_number(name, getattr(self, name))
        check_number("prune_after", self.prune_after or 0)
        check_at_least("target_growth", self.target_growth, 1)
        if self.penalty_in == "decoupled" and (self.penalty, self.penalty_on) != ("lasso", "scales"):
            raise UsageError("penalty_in='decoupled' is a lasso on scales; leave penalty and penalty_on as they are")
        if self.penalty_times_lr and self.penalty_in != "decoupled":
            raise UsageError("penalty_times_lr is of the decoupled penalty; give penalty_in='decoupled', or leave it")
        Penalty(self.penalty, self.peak_strength, self.penalty_on)
        Criterion(kind=self.criterion, eps=self.eps)
        ConstantRules(max_drift=self.max_drift)
        for name in (self.schedule, self.noise_schedule or self.schedule):
            schedules.make(name, span=self.span, peak_at=self.peak_at)
        for field in ("period", "window_steps"):
            if getattr(self, field) is not None:
                check_at_least(field, getattr(self, field), 1)
        if self.target_neuron_sparsity is not None:
            check_share("target_neuron_sparsity", self.target_neuron_sparsity)
        raise_if_two_aims(self)
        check_phase(self.push_from, self.push_until, self.rounds, self.cost_power)

    def reading(self) -> dict[str, bool]:
        """Return the options of `demp.trace` by which the model is read."""
        return {**super().reading(), "streams": self.streams, "linear": self.linear}

    def unused(self) -> tuple[str, ...]:
        """Return the names of options that were given and have no effect, since with a budget nothing is pushed."""
        if self.budget is None:
            return ()
        return tuple(f.name for f in fields(self) if f.name in WITHOUT_BUDGET and getattr(self, f.name) != f.default)

    def phase(self) -> Phase | None:
        """Return how and when the budget is reached; None without a budget."""
        if self.budget is None:
            return None
        return Phase(
            budget=self.budget,
            start=self.push_from,
            end=self.push_until,
            rounds=self.rounds,
            power=self.cost_power,
            hands_over=self.hand_over,
            limits=self.limits(),
            unused=self.unused(),
        )
