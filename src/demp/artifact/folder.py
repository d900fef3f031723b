"""Save and load a cut model: safetensors weights, an architecture.json, proven on load; reading them runs no code."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demp import files
from demp.artifact.architecture import ARCHITECTURE, FORMAT, WEIGHTS, content_hash, dtype_name, read_architecture
from demp.artifact.proof import probe_of, prove
from demp.artifact.rebuilding import built, module_at, raise_if_no_constructor
from demp.errors import ArtifactError
from demp.graph.calls import calls_from_plain, calls_to_plain
from demp.graph.forward import first_names
from demp.graph.joins import joins_from_plain, joins_to_plain, set_calls, set_joins
from demp.parallel import context_of, user_class, user_module
from demp.surgery.beside import module_sizes
from demp.surgery.record import put_record, record_from_plain, record_of, record_to_plain


def save(model: nn.Module, path: str | Path, *, example_inputs: Any = None, builder: Any = None) -> Path:
    """Save a model of any widths as the folder ``path``, which `demp.load` rebuilds; returns the path.

    The folder holds ``model.safetensors`` (the tensors) and ``architecture.json``: the shape of every tensor, the
    indices that cuts have kept, in dense numbering, a description of inputs with the outputs that the model gives on
    them (which `demp.load` compares), and ``builder``, any JSON that says how the dense model is constructed. The
    inputs are like ``example_inputs``, or like those of the last cut. The folder appears whole or not at all, and a
    model saved there earlier is replaced. A sharded model is saved by its first rank, and every rank must call this.

    Raises:
        ArtifactError: the folder holds other files, or could not be written.
    """
    path, context, model = Path(path), context_of(model), user_module(model)
    with context.whole(model):
        if not context.sharded or context.is_main_process:
            with replacing(path) as folder:
                write(model, folder, example_inputs=example_inputs, builder=builder)
    return path


def write(
    model: nn.Module, folder: Path, *, example_inputs: Any, builder: Any, metadata: dict[str, str] | None = None
) -> None:
    """The two files of a saved model into an existing folder; ``metadata`` goes into the header of the weights."""
    tensors, aliases = first_names(model)
    persistent = set(model.state_dict(keep_vars=True))
    stored = unshared({n: t.detach().contiguous().cpu() for n, t in tensors.items() if n in persistent})
    save_file(stored, folder / WEIGHTS, metadata)
    architecture = {
        "format": FORMAT,
        "torch": torch.__version__,
        "class": user_class(model).__name__,
        "builder": builder,
        "tensors": {name: {"shape": list(t.shape), "dtype": dtype_name(t)} for name, t in stored.items()},
        "aliases": {name: first for name, first in aliases.items() if first in stored},
        "modules": module_sizes(model),
        "joins": joins_to_plain(model),
        "calls": calls_to_plain(model),
        "record": record_to_plain(record_of(model)),
        "probe": probe_of(model, example_inputs),
        "weights_sha256": sha256(folder / WEIGHTS),
    }
    architecture["sha256"] = content_hash(architecture)
    (folder / ARCHITECTURE).write_text(json.dumps(architecture, indent=1))


def unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, none of which shares memory with another (the file format stores each on its own)."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return apart


def load(build: Callable[[], nn.Module], path: str | Path, *, device: Any = None) -> nn.Module:
    """Rebuild a saved model: ``build()`` makes the dense model, its tensors take the saved shapes and values.

    The model must give the outputs that it gave when it was saved, on the same inputs. It comes back in the mode that
    ``build()`` gives it, on ``device``, or where it was built.

    Raises:
        UsageError: ``build`` is a network, not what makes one.
        ArtifactError: a file is missing, truncated or altered, the constructor does not fit, or the outputs on the
            stored probe differ.
    """
    raise_if_no_constructor(build)
    path = files.settled(Path(path))
    architecture = read_architecture(path)
    weights = read_weights(path, architecture)
    model = built(build, weights, architecture)
    if architecture["record"] is not None:
        put_record(model, record_from_plain(architecture["record"]))
    for name, plans in joins_from_plain(architecture.get("joins", {})).items():
        set_joins(module_at(model, name), plans)
    for name, calls in calls_from_plain(architecture.get("calls", {})).items():
        set_calls(module_at(model, name), calls)
    prove(model, architecture["probe"], path)
    return model.to(device) if device is not None else model


def read_weights(path: Path, architecture: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors in model.safetensors after checking the file's hash.

    Raises:
        ArtifactError: the file is truncated, altered or unreadable.
    """
    file = path / WEIGHTS
    if sha256(file) != architecture["weights_sha256"]:
        raise ArtifactError(f"{file} is truncated or altered: its hash is not the one in {ARCHITECTURE}")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ArtifactError(f"{file} cannot be read: {error}") from None


def sha256(file: Path) -> str:
    """Return the SHA-256 hash of a file in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def raise_if_foreign_files(path: Path, own: Collection[str]) -> None:
    """A save takes the place of an earlier one, never of anything else.

    Raises:
        ArtifactError: there are other files, or a file of that name.
    """
    if path.is_dir():
        others: list[str] = []
        with suppress(FileNotFoundError):  # another writer puts its folder there right now
            others = sorted(p.name for p in path.iterdir() if p.name not in own)
        if others:
            raise ArtifactError(
                f"{path} holds other files ({', '.join(others[:3])}); give a folder of its own for the saved model"
            )
    elif path.exists() and not path.is_dir():  # asked again: another writer may have put its folder there meanwhile
        raise ArtifactError(f"{path} is a file; give a folder for the saved model")


@contextmanager
def replacing(path: Path, own: Collection[str] = (WEIGHTS, ARCHITECTURE)) -> Iterator[Path]:
    """A fresh folder that takes the place of ``path`` when all went well; the old one survives any failure.

    ``own`` are the files that an earlier save may have left there.

    Raises:
        ArtifactError: the folder holds other files, or could not be written.
    """
    raise_if_foreign_files(files.settled(path), own)
    try:
        with files.replacing_folder(path) as folder:
            yield folder
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own words
        raise ArtifactError(f"could not save the model to {path}: {error}; what was there is unchanged") from error
