"""What a cut does to the copies of the model: proven as for the model, and measured, where a copy can run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from demp.errors import CutError
from demp.parallel import Context
from demp.surgery.copies import Copy
from demp.surgery.live import LiveModel
from demp.surgery.plan import Plan
from demp.surgery.proving import VerifyOptions, zeroed
from demp.surgery.verify import difference, outputs_of, tolerance_for


@dataclass(frozen=True)
class CopyReference:
    """A copy before the cut: its inputs, its outputs, and as they must be after; ``why`` they are not known."""

    copied: Copy
    inputs: Any = None
    plain: list[Tensor] | None = None
    wanted: list[Tensor] | None = None
    why: str = ""


def refer_copies(live: LiveModel, plan: Plan, options: VerifyOptions, *, constants: bool) -> list[CopyReference]:
    """Run the copies before the cut. With ``constants`` a copy gains what the model gains, which is not exact in it."""
    if not options.verify:
        return []
    found = []
    for copied in live.copies:
        if copied.is_masks:
            continue
        if copied.module is None:
            found.append(CopyReference(copied))
            continue
        inputs = inputs_for(copied.module, live.model, options.example_inputs)
        try:
            plain = outputs_of(copied.module, inputs, options.outputs)
        except Exception as error:  # the user's forward may raise anything; the copy is cut all the same
            found.append(CopyReference(copied, why=f"{error}".strip().split("\n")[0] or type(error).__name__))
            continue
        if not plain or not all(bool(t.isfinite().all()) for t in plain):
            found.append(CopyReference(copied, why="its outputs are not finite"))
            continue
        mine = replace(options, example_inputs=inputs)
        found.append(CopyReference(copied, inputs, plain, None if constants else zeroed(copied.module, plan, mine)))
    return found


def prove_copies(references: Sequence[CopyReference], options: VerifyOptions) -> dict[str, float | None]:
    """Run the copies after the cut: by how much the outputs of each changed, over their scale; None: not measured.

    Raises:
        CutError: a copy's outputs are not those of the copy in which the removed neurons are zeroed.
    """
    drifts: dict[str, float | None] = {}
    for before in references:
        module, drifts[before.copied.name] = before.copied.module, None
        if module is None or before.plain is None:
            continue
        after = outputs_of(module, before.inputs, options.outputs)
        limit = tolerance_for(after) if options.tolerance is None else options.tolerance
        gap = 0.0 if before.wanted is None else difference(before.wanted, after)
        if not gap <= limit:
            raise CutError(
                f"rolled back: outputs of the copy {before.copied.name} changed by {gap:.1e} of their scale (tolerance "
                f"{limit:.0e}) more than by the neurons that went; is its forward that of the model?"
            )
        drifts[before.copied.name] = difference(before.plain, after)
    return drifts


def notes_on(references: Sequence[CopyReference]) -> tuple[str, ...]:
    """Which copies were cut without a measurement, and why."""
    return tuple(
        f"the copy {one.copied.name} was cut, but did not run before ({one.why}): its change is not measured"
        for one in references
        if one.why
    )


def worst(drifts: dict[str, float | None], context: Context) -> dict[str, float | None]:
    """The largest change of each copy on any rank; a copy may be on some ranks only."""
    found: dict[str, float | None] = {}
    for of_rank in context.gathered(drifts):
        for name, drift in of_rank.items():
            known = found.get(name)
            found[name] = drift if known is None else known if drift is None else max(known, drift)
    return found


def inputs_for(copied: nn.Module, model: nn.Module, inputs: Any) -> Any:
    """Inputs of the model on the device and in the precision of a copy."""
    mine, theirs = next(model.parameters(), None), next(copied.parameters(), None)
    if mine is None or theirs is None or (mine.device, mine.dtype) == (theirs.device, theirs.dtype):
        return inputs

    def moved(tensor: Tensor) -> Tensor:
        dtype = theirs.dtype if tensor.dtype == mine.dtype else tensor.dtype
        return tensor.to(theirs.device, dtype)

    return tree_map_only(torch.Tensor, moved, inputs)
