"""What a model can be exported as: how each format is written, and how it is read back."""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from demp import __version__
from demp.artifact import folder as artifact
from demp.artifact import rebuilding
from demp.errors import ExportError
from demp.exports import transformers_folder
from demp.exports.agreement import difference, first_line, tolerance_of
from demp.exports.examples import Answer, answers, rows
from demp.exports.program import captured, program_answer
from demp.graph.calls import model_calls
from demp.graph.joins import model_joins

PLANNED = "calls that a cut has planned, since they depend on the number of neurons"
TRACED_BATCH = 2
"""Examples in the batch that a graph is traced on; a batch of one would make torch fix the size."""


@dataclass(frozen=True)
class Subject:
    """A model that leaves, and what is known about it."""

    model: nn.Module
    inputs: Any
    """A batch of real inputs: a tuple, or a dict by name."""
    build: Callable[[], nn.Module] | None = None
    """The constructor of the dense model, if it is known."""
    builder: Any = None
    """The same as JSON, with the facts of the images, as saved with a run."""
    summary: dict[str, Any] | None = None
    """summary.json of the run."""


@dataclass(frozen=True)
class Written:
    """A file that was written, and how it answers now that it was read back."""

    file: str
    loads_with: str
    answer: Answer
    model: str
    """Class of what the file holds."""
    notes: tuple[str, ...] = ()
    options: str = ""
    """See `ExportReport`."""


@dataclass(frozen=True)
class Format:
    """One kind of file that `demp.export` can write: what it leaves in the folder, and how it is written."""

    files: tuple[str, ...]
    """Every file that it may leave in its folder."""
    write: Callable[[Subject, Path], Written]


def torch_export(subject: Subject, folder: Path) -> Written:
    """A graph that `torch.export.load` runs, without the model's code."""
    program, notes = captured(subject.model, subject.inputs, TRACED_BATCH)
    torch.export.save(program, folder / "model.pt2")
    return Written("model.pt2", "torch.export.load", program_answer(folder / "model.pt2"), kind(subject.model), notes)


def onnx(subject: Subject, folder: Path) -> Written:
    """A graph for onnxruntime and others."""
    from demp.exports import onnx_file  # needs an extra, which the other formats do without

    onnx_file.require()
    program, notes = captured(subject.model, subject.inputs, TRACED_BATCH)
    onnx_file.write(subject.model, program, subject.inputs, folder / "model.onnx")
    answer = onnx_file.answer(subject.model, folder / "model.onnx")
    return Written("model.onnx", "onnxruntime", answer, kind(subject.model), notes)


def state_dict(subject: Subject, folder: Path) -> Written:
    """A plain dict of tensors in torch's own format."""
    state = {name: tensor.cpu() for name, tensor in state_of(subject.model).items()}
    torch.save(state, folder / "model.pt")
    read = torch.load(folder / "model.pt", weights_only=True)
    require_equal(state, read, "model.pt")
    twin = blanked(subject.model)
    twin.load_state_dict(read)
    note = "the tensors have the shapes of the cut network; --to safetensors keeps what rebuilds it from the dense one"
    notes = [note]
    for plans, what in ((model_joins, "residual sums of different channels"), (model_calls, PLANNED)):
        if many := sum(map(len, plans(subject.model).values())):
            notes.append(f"{what}, which only --to safetensors or a graph keeps: {many}")
    return Written("model.pt", "torch.load", lambda inputs: answers(twin, inputs), kind(twin), tuple(notes))


def safetensors(subject: Subject, folder: Path) -> Written:
    """Weights without pickle, and the spec that rebuilds the network: an ordinary config where one can say it."""
    written, why = library_folder(subject, folder)
    if written is not None:
        return written
    metadata = {"format": "pt", "class": type(subject.model).__name__, "producer": f"demp {__version__}"}
    artifact.write(subject.model, folder, example_inputs=subject.inputs, builder=subject.builder, metadata=metadata)
    spec = artifact.read_architecture(folder)
    read = artifact.read_weights(folder, spec)
    state = state_of(subject.model)
    require_equal({name: state[name] for name in read}, read, artifact.WEIGHTS)
    if subject.build is not None:
        twin = artifact.load(subject.build, folder)
    else:
        twin = blanked(subject.model)
        rebuilding.put(twin, read, spec)
    return Written(
        artifact.WEIGHTS, "demp.load", lambda inputs: answers(twin, inputs), kind(twin), (why,) if why else ()
    )


def library_folder(subject: Subject, folder: Path) -> tuple[Written | None, str]:
    """A folder that transformers loads by itself; None where no config says what the model is, and why."""
    library, why = transformers_folder.ordinary(subject.model)
    if library is None:
        return None, why
    transformers_folder.write(library, folder)
    twin = transformers_folder.read(subject.model, folder)
    require_equal(state_of(library), state_of(transformers_folder.part_of(twin)), artifact.WEIGHTS)
    if otherwise := otherwise_than(subject, twin):
        for name in transformers_folder.FILES:
            (folder / name).unlink(missing_ok=True)
        return None, f"a {kind(library)} of these widths {otherwise}: its folder loads with demp.load"
    told = transformers_folder.loading_options(transformers_folder.part_of(subject.model), folder)
    notes = ["an ordinary transformers folder: config.json says the widths"]
    if told:
        notes.append(f"the model computes its experts with {told}; give that to from_pretrained")
    own = artifact.WEIGHTS, "transformers", lambda inputs: answers(twin, inputs), kind(library)
    return Written(*own, tuple(notes), told), ""


def otherwise_than(subject: Subject, other: nn.Module) -> str:
    """What another network does otherwise than the model; empty where it answers the same."""
    inputs = rows(subject.inputs, TRACED_BATCH)
    wanted = answers(subject.model, inputs)
    allowed = tolerance_of([*subject.model.parameters(), *wanted])
    try:
        found = answers(other, inputs)
    except Exception as error:  # a forward may raise anything; the model's own did not
        return f"does not run ({first_line(error)})"
    return "" if difference(wanted, found, kind(other)) <= allowed else "computes otherwise"


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict; what is no tensor in it has no place in a file of weights.

    Raises:
        ExportError: the state holds something that is no tensor.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ExportError(f"{name} in the state of {kind(model)} is a {type(value).__name__}, not a tensor")
    return dict(state)


def kind(model: nn.Module) -> str:
    """Return the name of the model's class."""
    return type(model).__name__


def require_equal(wanted: dict[str, Tensor], found: dict[str, Tensor], file: str) -> None:
    """Every tensor came back to the bit.

    Raises:
        ExportError: a tensor differs, is missing, or was not there before.
    """
    for name in sorted(wanted.keys() | found.keys()):
        if name not in wanted or name not in found or not alike(wanted[name], found[name]):
            raise ExportError(f"{file}: {name} did not come back as it was written; nothing was kept")


def alike(a: Tensor, b: Tensor) -> bool:
    """Equal in type and shape, and to the bit, NaN included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    first, second = (t.detach().cpu().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(first, second)


@torch.no_grad()
def blanked(model: nn.Module) -> nn.Module:
    """A copy of the model in which everything that a state holds is missing, so that reading must bring it back."""
    twin = copy.deepcopy(model)
    for tensor in state_of(twin).values():
        tensor.fill_(float("nan") if tensor.is_floating_point() or tensor.is_complex() else 0)
    return twin


def size_of(folder: Path, file: str) -> int:
    """Bytes of a file and of those that carry its name and more (weights kept beside a large graph)."""
    return sum(os.path.getsize(path) for path in folder.iterdir() if path.name.startswith(file))


FORMATS = {
    "torch-export": Format(("model.pt2",), torch_export),
    "onnx": Format(("model.onnx", "model.onnx.data"), onnx),
    "safetensors": Format((artifact.WEIGHTS, artifact.ARCHITECTURE, *transformers_folder.FILES), safetensors),
    "state-dict": Format(("model.pt",), state_dict),
}
"""Every format by name."""
