"""The proof in a saved model: inputs by description and seed, and the outputs that a rebuilt model gives on them."""

import hashlib
import logging
from math import inf, isfinite, isnan, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from demp.activity.observe import quiet
from demp.artifact.architecture import KEPT_VALUES as VALUES
from demp.artifact.architecture import batch_of, fits
from demp.errors import ArtifactError
from demp.graph.forward import FORWARD
from demp.graph.inputs import tensors_in
from demp.surgery.record import describe_inputs, make_inputs, record_of

logger = logging.getLogger("demp")
SEED = 0
"""Of the inputs that are drawn."""
TOLERANCE = 1e-3
"""Relative output difference that another machine or torch version may show."""


def probe_of(model: nn.Module, example_inputs: Any) -> dict[str, Any] | None:
    """Inputs by description and seed, and the outputs on them; None when no inputs are known."""
    record = record_of(model)
    described = describe_inputs(example_inputs) if example_inputs is not None else record.inputs if record else None
    if described is None or FORWARD in vars(model):  # the file does not say how to run the model
        return None
    probe = {"inputs": described, "seed": SEED}
    if not drawable(model, probe):
        return None
    try:
        outputs = probe_outputs(model, probe)
    except Exception as error:  # the user's forward may raise anything
        probe["whole"] = True
        outputs = outputs_on_whole(model, probe, error)
    if outputs is None:
        return None
    return {**probe, "digest": digest(outputs), "outputs": [summary(t) for t in outputs]}


def outputs_on_whole(model: nn.Module, probe: dict[str, Any], before: Exception) -> list[Tensor] | None:
    """Outputs on inputs of which none is shortened: the nodes and edges of a graph share no axis; None if that fails.

    A forward may also need values that no seed draws, as places for the patches of an image among the tokens.
    """
    if not drawable(model, probe):
        return None
    try:
        return probe_outputs(model, probe)
    except Exception as error:  # the user's forward may raise anything
        reason = (str(error).strip() or str(before).strip() or type(error).__name__).split("\n")[0]
        logger.warning(
            "the model is saved without a proof of its outputs: it does not run on inputs that are drawn at random in "
            "the shapes of the example inputs (%s)",
            reason,
        )
        return None


def drawable(model: nn.Module, probe: dict[str, Any]) -> bool:
    """Are the inputs few enough numbers, for this model? If not, a warning says so."""
    weights = sum(t.numel() for t in model.state_dict().values() if isinstance(t, Tensor))
    described, batch = probe["inputs"], batch_of(probe)
    shapes = [one["shape"] for one in (*described["args"], *described["kwargs"].values()) if "shape" in one]
    drawn = sum(prod([min(shape[0], batch or shape[0]), *shape[1:]]) if shape else 1 for shape in shapes)
    if not fits(drawn, weights):
        logger.warning("the example inputs have %d values, more than a proof may draw: none is saved", drawn)
    return fits(drawn, weights)


def probe_outputs(model: nn.Module, probe: dict[str, Any]) -> list[Tensor]:
    """Outputs on inputs drawn from the seed."""
    args, kwargs = make_inputs(probe["inputs"], seed=probe["seed"], batch=batch_of(probe))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    args = tuple(a.to(device) if isinstance(a, Tensor) else a for a in args)
    kwargs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    with quiet(model):
        return [t.cpu() for t in tensors_in(model(*args, **kwargs))]


def prove(model: nn.Module, probe: dict[str, Any] | None, path: Path) -> None:
    """Outputs on the probe must be those that were saved: to the bit, or to rounding on another machine.

    Raises:
        ArtifactError: they are others, or the model does not run.
    """
    if probe is None:
        return
    other = "the constructor builds another network than the one that was saved"
    try:
        outputs = probe_outputs(model, probe)
    except Exception as error:  # the user's forward may raise anything
        reason = str(error).strip().split("\n")[0]
        raise ArtifactError(f"{path}: the rebuilt model does not run ({reason}); {other}") from error
    if digest(outputs) == probe["digest"]:
        return
    if len(outputs) != len(probe["outputs"]):
        raise ArtifactError(
            f"{path}: the rebuilt model returns {len(outputs)} tensors, the saved one {len(probe['outputs'])}; {other}"
        )
    for was, output in zip(probe["outputs"], outputs, strict=True):
        shape, values = list(output.shape), sample(output, was.get("every", 1))
        if was["shape"] != shape:
            raise ArtifactError(
                f"{path}: the rebuilt model returns {shape} where the saved one returned {was['shape']}; {other}"
            )
        gap = relative_gap(was["values"], values)
        if gap > TOLERANCE:
            raise ArtifactError(
                f"{path}: the rebuilt model's outputs differ from the saved ones by {gap:.1e} of their scale; {other}"
            )


def summary(output: Tensor) -> dict[str, Any]:
    """Shape of an output and some of its values, every so many from the first to the last."""
    every = max(1, -(-output.numel() // VALUES))
    return {"shape": list(output.shape), "every": every, "values": sample(output, every)}


def sample(output: Tensor, every: int) -> list[float]:
    """The values of an output, every so many, no more than are kept."""
    return output.double().flatten()[::every][:VALUES].tolist()


def relative_gap(was: list[float], now: list[float]) -> float:
    """Largest difference over the largest finite value of ``was``; values that are not finite must be the same."""
    gap = scale = 0.0
    for a, b in zip(was, now, strict=True):
        if isfinite(a) and isfinite(b):
            gap, scale = max(gap, abs(a - b)), max(scale, abs(a))
        elif a != b and not (isnan(a) and isnan(b)):
            return inf
    return gap / max(scale, 1e-30)


def digest(outputs: list[Tensor]) -> str:
    """Hash of all outputs, to the bit."""
    whole = hashlib.sha256()
    for tensor in outputs:
        whole.update(bytes(tensor.flatten().view(torch.uint8).tolist()))
    return whole.hexdigest()
