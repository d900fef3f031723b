"""Save and load a cut model without pickle: safetensors weights, an architecture.json, proven on load."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demp import ranks, shards, wrappers
from demp.errors import ArtifactError
from demp.graph.attributes import COUNTS
from demp.graph.forward import first_names
from demp.graph.joins import joins_from_plain, joins_to_plain, set_joins
from demp.proof import probe_of, prove
from demp.surgery.record import ATTRIBUTE, record_from_plain, record_of, record_to_plain
from demp.surgery.shrink import SIZE_ATTRIBUTES

logger = logging.getLogger("demp")
FORMAT = 3
WEIGHTS, ARCHITECTURE = "model.safetensors", "architecture.json"


def save(model: nn.Module, path: str | Path, *, example_inputs: Any = None, builder: Any = None) -> Path:
    """Write ``model.safetensors`` and ``architecture.json`` into the folder ``path``, atomically.

    The architecture holds the shape of every tensor, the kept indices in dense numbering, the inputs that prove the
    outputs on load (from ``example_inputs``, or those of the last cut), and ``builder``: any JSON that says how the
    dense model is constructed. A sharded model is saved by its first rank, and every rank must call this.
    """
    path, model = Path(path), wrappers.inside(model)
    with shards.whole(model):
        if not shards.parts(model) or ranks.speaks(shards.group_of(model)):
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
        "class": shards.kind_of(model).__name__,
        "builder": builder,
        "tensors": {name: {"shape": list(t.shape), "dtype": dtype_name(t)} for name, t in stored.items()},
        "aliases": {name: first for name, first in aliases.items() if first in stored},
        "modules": module_sizes(model),
        "joins": joins_to_plain(model),
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

    Raises:
        ArtifactError: a file is missing, truncated or altered, the constructor does not fit, or the outputs on the
            stored probe differ.
    """
    path = Path(path)
    architecture = read_architecture(path)
    weights = read_weights(path, architecture)
    model = built(build, weights, architecture)
    if architecture["record"] is not None:
        setattr(model, ATTRIBUTE, record_from_plain(architecture["record"]))
    for name, plans in joins_from_plain(architecture.get("joins", {})).items():
        set_joins(model.get_submodule(name), plans)
    prove(model, architecture["probe"], path)
    return model.to(device) if device is not None else model


def built(build: Callable[[], nn.Module], weights: dict[str, Tensor], architecture: dict[str, Any]) -> nn.Module:
    """The constructor's model with the saved tensors in; on meta first, so that dense weights are never allocated."""
    try:
        with torch.device("meta"):
            model = build()
        put(model, weights, architecture)
        if not any(t.is_meta for t in (*model.parameters(), *model.buffers())):
            return model
    except ArtifactError:
        raise
    except Exception as error:  # a constructor may need values that meta tensors do not have: build it for real
        logger.debug("the constructor does not run on the meta device: %s", error)
    model = build()
    put(model, weights, architecture)
    return model


def put(model: nn.Module, weights: dict[str, Tensor], architecture: dict[str, Any]) -> None:
    """Every saved tensor into its place, ties kept; sizes that modules remember follow."""
    tensors, aliases = first_names(model)
    expected = {name for name in tensors if name in model.state_dict(keep_vars=True)}
    if expected != set(weights) or not set(architecture["aliases"]) <= set(aliases):
        odd = sorted(expected ^ set(weights))[:3] or sorted(set(architecture["aliases"]) - set(aliases))[:3]
        raise ArtifactError(
            f"the constructor's model and the saved one differ in {', '.join(odd)}; "
            "build the model with the arguments it was trained with"
        )
    names = {first: [first, *(a for a, f in aliases.items() if f == first)] for first in tensors}
    for name, value in {**weights, **unsaved_buffers(tensors, weights, architecture)}.items():
        old = tensors[name]
        if old.dim() != value.dim():
            raise ArtifactError(
                f"{name} has {old.dim()} axes in the constructor's model and {value.dim()} in the saved one"
            )
        new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
        for alias in names[name]:
            owner, _, leaf = alias.rpartition(".")
            module = model.get_submodule(owner)
            place = module._parameters if leaf in module._parameters else module._buffers
            place[leaf] = new  # type: ignore[index]
    for name, sizes in architecture["modules"].items():
        module = model.get_submodule(name)
        for attribute, value in sizes.items():
            if getattr(module, attribute, None) != value:
                setattr(module, attribute, value)


def unsaved_buffers(
    tensors: dict[str, Tensor], weights: dict[str, Tensor], architecture: dict[str, Any]
) -> dict[str, Tensor]:
    """Buffers that the constructor computes and no file holds, at the widths that the cuts left."""
    small: dict[str, Tensor] = {}
    record = architecture["record"]
    for key, kept in (record["kept"] if record is not None else {}).items():
        name, _, axis = key.rpartition("|")
        if name in tensors and name not in weights:
            whole = small.get(name, tensors[name])
            small[name] = whole.index_select(int(axis), torch.tensor(kept, device=whole.device))
    return small


def module_sizes(model: nn.Module) -> dict[str, dict[str, int]]:
    """Sizes that modules remember, by path."""
    sizes: dict[str, dict[str, int]] = {}
    for path, module in model.named_modules():
        known = next((v for kind, v in SIZE_ATTRIBUTES.items() if isinstance(module, kind)), ())
        found = {attribute: getattr(module, attribute) for attribute, _ in known}
        found |= {name: vars(module)[name] for name in COUNTS if isinstance(vars(module).get(name), int)}
        if found:
            sizes[path] = found
    return sizes


def read_architecture(path: Path) -> dict[str, Any]:
    """architecture.json, checked."""
    file = path / ARCHITECTURE
    for needed in (file, path / WEIGHTS):
        if not needed.is_file():
            raise ArtifactError(f"{needed} is missing; a saved model is a folder with {WEIGHTS} and {ARCHITECTURE}")
    try:
        architecture = json.loads(file.read_text())
        claimed = architecture["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file} is truncated or altered ({type(error).__name__}); save the model again") from None
    if claimed != content_hash(architecture):
        raise ArtifactError(f"{file} was altered after it was saved; save the model again")
    if architecture["format"] > FORMAT:
        raise ArtifactError(f"{file} has format {architecture['format']}; this demp reads up to {FORMAT}: upgrade demp")
    return architecture


def read_weights(path: Path, architecture: dict[str, Any]) -> dict[str, Tensor]:
    """model.safetensors, checked."""
    file = path / WEIGHTS
    if sha256(file) != architecture["weights_sha256"]:
        raise ArtifactError(f"{file} is truncated or altered: its hash is not the one in {ARCHITECTURE}")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ArtifactError(f"{file} cannot be read: {error}") from None


def sha256(file: Path) -> str:
    """Hash of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(architecture: dict[str, Any]) -> str:
    """Hash of everything in the architecture but the hash itself."""
    rest = {k: v for k, v in architecture.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def dtype_name(tensor: Tensor) -> str:
    """The dtype's name: float32, int64."""
    return str(tensor.dtype).removeprefix("torch.")


def refuse_foreign(path: Path, own: Collection[str]) -> None:
    """A save takes the place of an earlier one, never of anything else."""
    if path.is_dir():
        others = sorted(p.name for p in path.iterdir() if p.name not in own)
        if others:
            raise ArtifactError(
                f"{path} holds other files ({', '.join(others[:3])}); give a folder of its own for the saved model"
            )
    elif path.exists():
        raise ArtifactError(f"{path} is a file; give a folder for the saved model")


@contextmanager
def replacing(path: Path, own: Collection[str] = (WEIGHTS, ARCHITECTURE)) -> Iterator[Path]:
    """A fresh folder that takes the place of ``path`` when all went well; the old one survives any failure.

    ``own`` are the files that an earlier save may have left there.
    """
    refuse_foreign(path, own)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.parent / f".{path.name}.new-{os.getpid()}"
    old = path.parent / f".{path.name}.old-{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir()
        yield fresh
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own words
        if old.exists() and not path.exists():
            old.rename(path)
        raise ArtifactError(f"could not save the model to {path}: {error}; what was there is unchanged") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
