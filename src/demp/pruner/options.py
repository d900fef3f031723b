"""The keyword options of `demp.DemP`, for editors, `help` and signatures.

Names and types stand here so that an editor completes them; defaults and meanings stay where they are decided, in
``DemPConfig`` and ``Pruner``, and a test holds the two together.
"""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypedDict, TypeVar

from demp.activity.criteria import CriterionKind
from demp.activity.detector import Batches
from demp.budgets import Budget
from demp.importance.gates import Loss
from demp.methods.demp_config import DemPConfig
from demp.pruner import Pruner
from demp.regularization.penalties import PenaltyKind, PenaltyTarget
from demp.regularization.schedules import ScheduleName
from demp.surgery.compared import Outputs

Function = TypeVar("Function", bound=Callable[..., Any])


class PrunerOptions(TypedDict, total=False):
    """What `demp.DemP` and every other method take besides their own options."""

    batches: Batches | None
    """Training examples without augmentation to look for dead neurons on: a list of batches, or a callable
    that takes a seed and returns batches. Without them the training forwards before each check are watched."""
    loss_fn: Loss | None
    """Mean loss of output and targets, for methods that score by gradients; each of ``batches`` is then a pair of
    inputs and targets."""
    attach: bool
    """Hook ``optimizer.step``. False: call ``before_step()`` after backward (and unscaling) and ``after_step()`` after
    the optimizer's step yourself; ``optimizer`` may then be a list."""
    copies: Iterable[Any]
    """Copies of the model (moving averages, teachers) that are cut with it; ``pruner.add_copy`` gives more."""
    seed: int
    """Seed of the noise and of the examples that are drawn."""
    resume: bool
    """True: the model stays dense until a saved state is loaded, whatever the method does before training."""
    forward: str | Callable[..., Any] | None
    """Runs the whole of a model whose own forward does not (an agent, a part of a GAN): the name of one of its methods,
    or a function of the model and the example inputs. Training need not call it."""
    outputs: Outputs
    """What a proof compares in place of the model's outputs (see ``demp.cut``). Of a function, also all that counts of
    the model's output: what it leaves out may become narrower (see ``demp.trace``)."""
    on_error: str
    """``skip``: a cut that cannot be made at its moment, for a reason that demp knows, is tried again later, and a
    warning and a report in ``history`` say why. ``raise``: the step raises instead."""
    alive_in_copies: str
    """A neuron that is dead in the model and alive in a copy that can run: ``wait`` until it is dead there too, at most
    until the last check; ``keep``: it stays then; ``cut``: it goes at once."""
    shows_cuts: bool
    """Each cut is a line on stderr where no handler listens to the logger ``demp``."""


class DemPOptions(PrunerOptions, total=False):
    """Every keyword option of `demp.DemP`: the fields of ``DemPConfig``, and what every pruner takes."""

    floor: int
    multiple: int
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    joins: bool
    budget: Budget | None
    streams: bool
    linear: bool
    peak_strength: float
    penalty: PenaltyKind
    penalty_on: PenaltyTarget
    penalty_in: Literal["gradient", "loss", "decoupled"]
    penalty_times_lr: bool
    schedule: ScheduleName
    span: float
    peak_at: float
    peak_noise_std: float
    noise_schedule: ScheduleName | None
    noise_is_variance: bool
    noise_times_lr: bool
    noise_on: Literal["live", "all", "off"]
    live_mask: Literal["neuron-gradient", "weight-gradient", "last-check"]
    noise_weights_only: bool
    noise_others: bool
    criterion: CriterionKind
    eps: float | None
    eps_relative: bool
    collect: Literal["auto", "probe", "window"]
    window_steps: int | None
    period: int | None
    dynamic: bool
    prune_after: int | None
    prune_at_start: bool
    max_drift: float | None
    fold: bool
    target_neuron_sparsity: float | None
    target_growth: float
    push_from: float
    push_until: float | None
    rounds: int
    cost_power: float
    hand_over: bool


def meanings(kind: type) -> dict[str, str]:
    """Name -> the docstring under it, for the fields that the class itself writes down.

    Raises:
        OSError: the source is not at hand.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for entry, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name) and isinstance(after, ast.Expr):
            found[entry.target.id] = inspect.cleandoc(ast.literal_eval(after.value))
    return found


def all_meanings(kind: type) -> dict[str, str]:
    """Docstrings of all fields of a config, of inherited ones too, by name."""
    docs: dict[str, str] = {}
    for ancestor in reversed(kind.__mro__):
        if dataclasses.is_dataclass(ancestor):
            docs |= meanings(ancestor)
    return docs


def signature(function: Callable[..., Any], config: type = DemPConfig) -> inspect.Signature:
    """The signature with every option by name, with its default, in place of ``**options``."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    written = inspect.signature(function)
    named = [p for p in written.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    of_method = [
        inspect.Parameter(field.name, keyword, default=field.default, annotation=field.type)
        for field in dataclasses.fields(config)
    ]
    shared = inspect.signature(Pruner.__init__).parameters
    of_pruner = [shared[name] for name in PrunerOptions.__annotations__]
    return written.replace(parameters=[*named, *of_method, *of_pruner])


def with_every_option(function: Function) -> Function:
    """A function that takes ``**options: Unpack[DemPOptions]``, with all of them in its signature and its help."""
    function.__signature__ = found = signature(function)  # pyright: ignore[reportFunctionMemberAccess]
    try:
        docs = {**all_meanings(DemPConfig), **meanings(PrunerOptions)}
    except OSError:  # a program packed without its sources: the signature has the names
        return function
    lines = [
        entry(f"{name}: {docs[name]} Default: ``{parameter.default!r}``.")
        for name, parameter in found.parameters.items()
        if name in docs
    ]
    function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), *lines])
    return function


def entry(text: str) -> str:
    """One argument under ``Args:``, as wide as a screen of help."""
    return textwrap.fill(
        " ".join(text.split()), 100, initial_indent="    ", subsequent_indent="        ", break_on_hyphens=False
    )
