"""Outputs of weights that no activation carries, so that they are in no layer: which, and why."""

from collections import Counter

from torch import Tensor

from demp.graph.parts import Refusal
from demp.graph.recording import ContractionSeen, Recording

NO_ACTIVATION = "no activation that keeps zero at zero follows"
AUXILIARY = (
    "read in the training forward alone (an auxiliary head, say), which evaluation, where death is detected, does "
    "not run; in a model without it (aux_logits=False) they may go"
)
TRAINING_ALONE = "made in the training forward alone (in an auxiliary head, say), where no dead neurons are looked for"
MODEL_OUTPUT = "model output"
UNKNOWN = "unknown operation"


def unoffered(recording: Recording, root: Tensor, number: Tensor, reasons: dict[int, str]) -> tuple[Refusal, ...]:
    """Refusals by the path of the module that owns the weight; outputs of the model itself need no reason.

    ``number`` is 0 for the roots that no activation carries; ``reasons`` says why roots are frozen.
    """
    counts: Counter[tuple[str, str]] = Counter()
    seen: set[tuple[str, int]] = set()
    alone_in_training = {contraction.weight for contraction in recording.in_training}
    for contraction in (*recording.contractions, *recording.in_training):
        for dim in output_axes(recording, contraction):
            assert contraction.weight is not None
            alone = len(recording.axes[contraction.weight][dim].ids) == 1  # nothing of one output could ever go
            if (contraction.weight, dim) not in seen and not alone:
                seen.add((contraction.weight, dim))
                roots = root[recording.axes[contraction.weight][dim].ids]
                for one in roots[number[roots] == 0].tolist():
                    why = reasons.get(one, NO_ACTIVATION)
                    if contraction.weight in alone_in_training and why in (NO_ACTIVATION, AUXILIARY):
                        why = TRAINING_ALONE
                    counts[contraction.weight, why] += 1
    contracted = {weight for weight, _ in seen} | {read.weight for read in recording.reads}
    for name, axes in recording.axes.items():
        if name not in contracted and len(axes) > 1:
            widest = max(axes, key=lambda axis: len(axis.ids))
            why = next((reasons[r] for r in root[widest.ids].unique().tolist() if r in reasons), "")
            if why.startswith(UNKNOWN):
                counts[name, why] += len(widest.ids)
    return tuple(
        Refusal(owner(weight), reason, neurons)
        for (weight, reason), neurons in counts.items()
        if reason != MODEL_OUTPUT and not (weight in alone_in_training and reason.startswith(MODEL_OUTPUT))
    )


def owner(weight: str) -> str:
    """Path of the module whose only weight this is called, or the parameter's own name."""
    path, _, leaf = weight.rpartition(".")
    return path if path and leaf == "weight" else weight


def output_axes(recording: Recording, contraction: ContractionSeen) -> list[int]:
    """Axes of the weight along which the contraction's outputs lie."""
    weight, made = contraction.weight, contraction.makes
    if weight is None or made is None or not len(made.ids):
        return []
    first = int(made.ids[0])
    return [dim for dim, axis in enumerate(recording.axes[weight]) if len(axis.ids) and int(axis.ids[0]) == first]
