"""All that a cut must prove: in the model, in evaluation and in training mode, on other examples, and in its copies."""

from dataclasses import dataclass, field, replace

from torch import Tensor

from demp.parallel import Context
from demp.surgery.constants import Settled, counts
from demp.surgery.copy_proof import CopyReference, notes_on, prove_copies, refer_copies, worst
from demp.surgery.live import LiveModel
from demp.surgery.plan import Plan
from demp.surgery.proving import (
    Proof,
    Reference,
    VerifyOptions,
    outputs_on_held_out,
    prove,
    raise_if_difference,
    refer,
)
from demp.surgery.training_proof import prove_training, refer_training
from demp.surgery.verify import difference

SAME = 3.0
"""A drift on other examples up to so many times that of the proof needs no note."""


@dataclass(frozen=True)
class CutOutcome:
    """What came out of an operation: the plan that was carried out, and what its proof measured."""

    plan: Plan
    seconds: float = 0.0
    difference: float | None = None
    drift: float | None = None
    notes: tuple[str, ...] = ()
    apart: tuple[int, int] | None = None
    """Neurons that went as zeros and as other constants, where that was looked at."""
    copies: dict[str, float | None] = field(default_factory=dict)
    """Copy -> by how much its outputs changed."""


@dataclass(frozen=True)
class Before:
    """What the proof compares with: outputs of the model and of its copies before the cut."""

    reference: Reference | None
    """None: nothing is to be proven."""
    in_training: list[Tensor] | None
    """Outputs in training mode without the neurons; None: not to be proven."""
    held_out: list[Tensor] | None
    """Outputs on examples on which no dead neurons were looked for, where constants move."""
    copies: list[CopyReference]


def before_cut(live: LiveModel, plan: Plan, options: VerifyOptions, settled: Settled | None) -> Before:
    """Run the forwards that the proof needs before anything is changed."""
    return Before(
        refer(live.model, plan, options, settled),
        None if settled is not None else refer_training(live, plan, options),
        None if settled is None else outputs_on_held_out(live.model, options),
        refer_copies(live, plan, options, constants=settled is not None),
    )


def proven(
    live: LiveModel, before: Before, options: VerifyOptions, settled: Settled | None, outcome: CutOutcome
) -> CutOutcome:
    """Compare the cut model with what it computed before; the outcome with what was measured.

    Raises:
        CutError: the copies' proof, or that in training mode, failed.
        Disagreement: outputs differ.
    """
    with live.context.whole(*live.modules), live.context.together():
        found = None if before.reference is None else prove(live.model, before.reference, options)
        drifts = prove_copies(before.copies, options)
        beyond = None if before.held_out is None else outputs_on_held_out(live.model, options)
    notes = notes_on(before.copies)
    if settled is not None:
        notes, outcome = notes + settled.notes, replace(outcome, apart=counts(settled))
    if found is None:
        return replace(outcome, notes=notes)
    raise_if_difference(found, live.context)
    prove_training(live.model, before.in_training, options)
    drift, more = found.drift, ()
    if settled is not None:
        drift, more = drift_of(found, before.held_out, beyond, live.context)
    copies = worst(drifts, live.context)
    return replace(outcome, difference=found.gap, drift=drift, notes=notes + more, copies=copies)


def drift_of(
    proof: Proof, before: list[Tensor] | None, after: list[Tensor] | None, context: Context
) -> tuple[float, tuple[str, ...]]:
    """By how much a cut changed outputs: on the examples of its proof, or on others if they changed more there.

    With a note where constants held on the examples that were looked at, and not elsewhere. Equal on all ranks.
    """
    mine = None if before is None or after is None else difference(before, after)
    found = context.highest((proof.drift, mine))
    drift, elsewhere = (number or 0.0 for number in found)
    if elsewhere <= max(SAME * drift, proof.limit):
        return max(drift, elsewhere), ()
    note = (
        f"neurons that are constant on the examples looked at are not on the last training batch: outputs changed by "
        f"{elsewhere:.1e} there, by {drift:.1e} on these examples. Give batches that are like the training data"
    )
    return elsewhere, (note,)
