"""Save and load a cut model: safetensors weights, an architecture.json, proven on load; reading them runs no code."""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from demp import files
from demp.activity.observe import quiet
from demp.artifact.architecture import ARCHITECTURE, FORMAT, WEIGHTS, batch_of, content_hash, read_architecture
from demp.artifact.proof import probe_of, prove
from demp.errors import ArtifactError
from demp.graph.attributes import SIZE_ATTRIBUTES
from demp.graph.calls import calls_from_plain, calls_to_plain
from demp.graph.forward import first_names
from demp.graph.joins import joins_from_plain, joins_to_plain, set_calls, set_joins
from demp.parallel import context_of, user_class, user_module
from demp.surgery.beside import module_sizes
from demp.surgery.record import make_inputs, put_record, record_from_plain, record_of, record_to_plain

logger = logging.getLogger("demp")
OTHER = "build the model with the arguments it was trained with"


def save(model: nn.Module, path: str | Path, *, example_inputs: Any = None, builder: Any = None) -> Path:
    """Write ``model.safetensors`` and ``architecture.json`` into the folder ``path``, atomically.

    The architecture holds the shape of every tensor, the kept indices in dense numbering, the inputs that prove the
    outputs on load (from ``example_inputs``, or those of the last cut), and ``builder``: any JSON that says how the
    dense model is constructed. A sharded model is saved by its first rank, and every rank must call this.
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

    Raises:
        ArtifactError: a file is missing, truncated or altered, the constructor does not fit, or the outputs on the
            stored probe differ.
    """
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


def built(build: Callable[[], nn.Module], weights: dict[str, Tensor], architecture: dict[str, Any]) -> nn.Module:
    """The constructor's model with the saved tensors in; on meta first, so that dense weights are never allocated."""
    try:
        with torch.device("meta"):
            model = build()
        make_lazy(model, architecture)
        put(model, weights, architecture)
        if not any(t.is_meta for t in (*model.parameters(), *model.buffers())):
            return model
    except ArtifactError:
        raise
    except Exception as error:  # a constructor may need values that meta tensors do not have: build it for real
        logger.debug("the constructor does not run on the meta device: %s", error)
    model = build()
    make_lazy(model, architecture)
    put(model, weights, architecture)
    return model


def make_lazy(model: nn.Module, architecture: dict[str, Any]) -> None:
    """Lazy modules take their dense sizes from one forward on inputs like those that the model was cut on."""
    if not any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        return
    if architecture["probe"] is None:
        raise ArtifactError("the constructor's model has lazy modules; let it run its forward once before it returns")
    args, kwargs = make_inputs(architecture["probe"]["inputs"], seed=0, batch=batch_of(architecture["probe"]))
    with quiet(model):
        model(*args, **kwargs)


def put(model: nn.Module, weights: dict[str, Tensor], architecture: dict[str, Any]) -> None:
    """Every saved tensor into its place, ties kept; sizes that modules remember follow."""
    tensors, aliases = first_names(model)
    expected = {name for name in tensors if name in model.state_dict(keep_vars=True)}
    if expected != set(weights) or not set(architecture["aliases"]) <= set(aliases):
        odd = sorted(expected ^ set(weights))[:3] or sorted(set(architecture["aliases"]) - set(aliases))[:3]
        raise ArtifactError(f"the constructor's model and the saved one differ in {', '.join(odd)}; {OTHER}")
    names = {first: [first, *(a for a, f in aliases.items() if f == first)] for first in tensors}
    for name, value in {**weights, **unsaved_buffers(tensors, weights, architecture)}.items():
        old = tensors[name]
        refuse_other(name, old, value, architecture["record"])
        new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
        for alias in names[name]:
            owner, _, leaf = alias.rpartition(".")
            module = model.get_submodule(owner)
            place = module._parameters if leaf in module._parameters else module._buffers
            place[leaf] = new  # type: ignore[index]
    for name, sizes in architecture["modules"].items():
        resize(module_at(model, name), sizes, name or "the model")


def resize(module: nn.Module, sizes: dict[str, int], what: str) -> None:
    """Sizes that a module remembers become those that the cuts left, which its weight shows."""
    changed = set()
    for attribute, value in sizes.items():
        old = getattr(module, attribute, None)
        if type(old) is not int or value > old or (value == 0 < old):
            raise ArtifactError(f"{attribute} of {what} is {old} in the constructor's model, saved as {value}; {OTHER}")
        if old != value:
            setattr(module, attribute, value)
            changed.add(attribute)
    known = next((axes for kind, axes in SIZE_ATTRIBUTES.items() if isinstance(module, kind)), ())
    weight: Any = getattr(module, "weight", None)
    for attribute, axis in known if isinstance(weight, Tensor) else ():
        shown = weight.shape[axis] * (getattr(module, "groups", 1) if axis else 1)
        if attribute in changed and sizes[attribute] != shown:
            raise ArtifactError(f"{attribute} of {what} is saved as {sizes[attribute]}, and its weight has {shown}")


def refuse_other(name: str, old: Tensor, value: Tensor, record: dict[str, Any] | None) -> None:
    """A saved tensor takes the place of one of the same kind, with the shape that the cuts left of it."""
    if old.dim() != value.dim():
        raise ArtifactError(
            f"{name} has {old.dim()} axes in the constructor's model and {value.dim()} in the saved one"
        )
    if not isinstance(old, nn.Parameter):
        return
    if old.requires_grad and not (value.is_floating_point() or value.is_complex()):
        raise ArtifactError(f"{name} is trained in the constructor's model and holds {dtype_name(value)}; {OTHER}")
    kept = record["kept"] if record is not None else {}
    left = [len(kept.get(f"{name}|{axis}", range(length))) for axis, length in enumerate(old.shape)]
    if list(value.shape) not in (left, list(old.shape)):
        raise ArtifactError(
            f"{name} has the shape {list(old.shape)} in the constructor's model, of which the cuts left {left}, and "
            f"{list(value.shape)} in the saved one; {OTHER}"
        )


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module that the file means."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ArtifactError(f"the constructor's model has no module {path!r}; {OTHER}") from None


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
            if record is not None and list(tensors[name].shape) != record["dense_shapes"][name]:
                raise ArtifactError(f"{name} has another shape in the constructor's model; {OTHER}")
            small[name] = whole.index_select(int(axis), torch.tensor(kept, device=whole.device))
    return small


def read_weights(path: Path, architecture: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors in model.safetensors after checking the file's hash."""
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


def dtype_name(tensor: Tensor) -> str:
    """The dtype's name: float32, int64."""
    return str(tensor.dtype).removeprefix("torch.")


def refuse_foreign(path: Path, own: Collection[str]) -> None:
    """A save takes the place of an earlier one, never of anything else."""
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
    """
    refuse_foreign(files.settled(path), own)
    try:
        with files.replacing_folder(path) as folder:
            yield folder
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own words
        raise ArtifactError(f"could not save the model to {path}: {error}; what was there is unchanged") from error
