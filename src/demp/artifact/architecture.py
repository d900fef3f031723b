"""architecture.json: read, and checked against the weights beside it before anything is made of it.

Whoever wrote the file, what passes is of the right form, asks for no more memory than the weights justify, and sets no
attribute of a module but the sizes that a cut sets.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from demp.artifact.form import Misfit, is_size, items, need, sizes, table
from demp.artifact.plans import check_calls, check_joins
from demp.errors import ArtifactError
from demp.graph.attributes import COUNTS, SIZE_ATTRIBUTES

FORMAT = 3
WEIGHTS, ARCHITECTURE = "model.safetensors", "architecture.json"
LARGEST = 256 * 2**20
"""Bytes of an architecture.json; that of a language model with 10 billion parameters has 40 MB."""
LONGEST_HEADER = 100 * 2**20
"""Bytes of the header of a safetensors file, as its own reader has it."""
INPUTS = 2**26
"""Values of the inputs of the proof that are always allowed; beyond them, so many per value in the weights:"""
INPUTS_PER_WEIGHT = 64
BATCH, KEPT_VALUES = 4, 32
"""Examples that a proof draws, and values of each output that it keeps, at most."""
SIZES = frozenset({*COUNTS, *(name for sizes in SIZE_ATTRIBUTES.values() for name, _ in sizes)})
"""Attributes of modules that a cut sets."""
DTYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in vars(torch).values()
    if isinstance(kind, torch.dtype) and not str(kind).removeprefix("torch.").startswith(("q", "bits"))
}
"""Types that inputs and weights can have, by name."""


def read_architecture(path: Path) -> dict[str, Any]:
    """What the file in the folder ``path`` says, checked; no tensor is read.

    Raises:
        ArtifactError: it is missing, truncated, altered, of a later format, or asks for what no cut leaves behind.
    """
    file = path / ARCHITECTURE
    for needed in (file, path / WEIGHTS):
        if not needed.is_file():
            raise ArtifactError(f"{needed} is missing; a saved model is a folder with {WEIGHTS} and {ARCHITECTURE}")
    values = parsed(file)
    if type(values["format"]) is not int or values["format"] < 1:
        raise ArtifactError(f"{file} has format {str(values['format'])[:20]!r}, which is none; save the model again")
    if values["format"] > FORMAT:
        raise ArtifactError(f"{file} has format {values['format']}; this demp reads up to {FORMAT}: upgrade demp")
    try:
        check(values)
        check_sizes(path / WEIGHTS, values["tensors"])
    except Misfit as misfit:
        raise ArtifactError(f"{file} does not describe a saved model: {misfit}; save the model again") from None
    return values


def parsed(file: Path) -> dict[str, Any]:
    """The values of the file, which must be as they were when it was saved.

    Raises:
        ArtifactError: the file is missing, too large, truncated or altered.
    """
    try:
        if file.stat().st_size > LARGEST:
            raise ArtifactError(f"{file} has more than {LARGEST >> 20} MB, which no {ARCHITECTURE} has")
        values = json.loads(file.read_bytes())
        claimed, _ = values["sha256"], values["format"]
        actual = content_hash(values)
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{file} is truncated or altered ({type(error).__name__}); save the model again") from None
    if claimed != actual:
        raise ArtifactError(f"{file} was altered after it was saved; save the model again")
    return values


def dtype_name(tensor: torch.Tensor) -> str:
    """The name of a dtype without its module: float32, int64."""
    return str(tensor.dtype).removeprefix("torch.")


def content_hash(architecture: dict[str, Any]) -> str:
    """Hash of everything in the architecture but the hash itself."""
    rest = {k: v for k, v in architecture.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


# The form of each part ----------------------------------------------------------------------------------


def check(values: dict[str, Any]) -> None:
    """Everything but the sizes on disk."""
    for name in ("tensors", "aliases", "modules", "record", "probe", "weights_sha256"):
        need(name in values, f"{name} is missing")
    for name, entry in items(values["tensors"], "tensors"):
        shape_of(entry, name)
    aliases = table(values["aliases"], "aliases")
    need(all(isinstance(first, str) for first in aliases.values()), "an alias is no name")
    for path, found in items(values["modules"], "modules"):
        for attribute, value in items(found, f"modules.{path}"):
            need(attribute in SIZES, f"it sets {attribute!r} of {path!r}, which no cut sets")
            need(is_size(value), f"{attribute} of {path!r} is {str(value)[:40]}, and no size")
    longest = max((length for entry in values["tensors"].values() for length in entry["shape"]), default=0)
    check_joins(values.get("joins", {}), longest)
    check_calls(values.get("calls", {}))
    weights = sum(math.prod(entry["shape"]) for entry in values["tensors"].values())
    if values["record"] is not None:
        check_record(table(values["record"], "record"), values["tensors"], weights)
    if values["probe"] is not None:
        check_probe(table(values["probe"], "probe"), weights)


def shape_of(entry: Any, what: str) -> list[int]:
    """The shape in ``{"shape": [...], "dtype": ...}``."""
    entry = table(entry, what)
    need(isinstance(entry.get("dtype"), str) and entry["dtype"] in DTYPES, f"{what} has an unknown type")
    return sizes(entry.get("shape"), f"the shape of {what}")


def check_record(record: Mapping[str, Any], tensors: Mapping[str, Any], weights: int) -> None:
    """What the model remembers of its dense self."""
    plain = {"dense_neurons", "neurons", "dense_flops", "paper_flops", "flops"}
    known = {"dense_shapes", "kept", "inputs", *plain}
    optional = {"paper_by_operation", "dense_counts"}
    need(known <= record.keys() <= known | optional, "the record has other parts than a record")
    for count in table(record.get("dense_counts", {}), "dense_counts").values():
        need(is_size(count), "a dense count is no size")
    for name in plain:
        need(type(record[name]) in (int, float) and 0 <= record[name] < 2**100, f"{name} in the record is no count")
    paper = record.get("paper_by_operation", [])
    need(isinstance(paper, list) and all(type(one) in (int, float) for one in paper), "FLOPs are no list of numbers")
    shapes = table(record["dense_shapes"], "dense_shapes")
    for name, shape in shapes.items():
        sizes(shape, f"the dense shape of {name}")
    for key, kept in items(record["kept"], "kept"):
        name, _, axis = key.rpartition("|")
        dense = shapes.get(name, [])
        need(axis.isdecimal() and int(axis[:9]) < len(dense), f"{key!r} is no axis of a dense tensor")
        length = dense[int(axis)]
        need(all(place < length for place in sizes(kept, f"what stays of {key}")), f"{key} keeps what was never there")
        need(len(set(kept)) == len(kept), f"{key} keeps an entry twice")
        now = tensors.get(name, {}).get("shape")
        need(now is None or (len(now) == len(dense) and now[int(axis)] == len(kept)), f"{key} keeps another number")
    if record["inputs"] is not None:
        check_inputs(record["inputs"], weights, batch=None)


def check_inputs(described: Any, weights: int, batch: int | None, drawn: bool = False) -> None:
    """Inputs by description; where they are ``drawn``, at most ``batch`` examples of them, or all."""
    args, kwargs = table(described, "inputs").get("args", ()), table(described.get("kwargs"), "inputs by name")
    need(isinstance(args, list), "inputs are no list")
    whole = 0
    for entry in (*args, *kwargs.values()):
        if "shape" in table(entry, "an input"):
            shape = shape_of(entry, "an input")
            whole += math.prod([min(shape[0], batch), *shape[1:]] if shape and batch else shape)
        else:
            value = entry.get("value", ...)
            need(value is None or isinstance(value, bool | int | float | str), "an input is neither tensor nor value")
    need(not drawn or fits(whole, weights), f"its inputs have {whole:,} values, too many for these weights")


def fits(values: int, weights: int) -> bool:
    """May the inputs of a proof have so many values, for so many values in the weights?"""
    return values <= max(INPUTS, INPUTS_PER_WEIGHT * weights)


def batch_of(probe: Mapping[str, Any]) -> int | None:
    """How many examples the proof draws; None: as many as are described, each input whole."""
    return None if probe.get("whole") else BATCH


def check_probe(probe: Mapping[str, Any], weights: int) -> None:
    """The inputs and outputs of the proof."""
    need(isinstance(probe.get("whole", False), bool), "the probe does not say whether its inputs are whole")
    need({"inputs", "seed", "digest", "outputs"} <= probe.keys(), "the probe has no inputs or no outputs")
    need(type(probe["seed"]) is int and abs(probe["seed"]) < 2**63, "the seed of the probe is none")
    need(isinstance(probe["digest"], str) and isinstance(probe["outputs"], list), "the outputs are no list")
    check_inputs(probe["inputs"], weights, batch=batch_of(probe), drawn=True)
    for output in probe["outputs"]:
        output = table(output, "an output")
        every, values = output.get("every", 1), output.get("values", ())
        need(is_size(every, 1), "an output has no distance between its values")
        need(isinstance(values, list) and all(type(v) in (int, float) for v in values), "an output has no numbers")
        count = math.prod(sizes(output.get("shape"), "the shape of an output"))
        need(len(values) == min(KEPT_VALUES, -(-count // every)), "an output has another number of values")


# The weights beside it ----------------------------------------------------------------------------------


def check_sizes(file: Path, tensors: Mapping[str, Any]) -> None:
    """The header of the weights must name these tensors, and the file be as long as they are.

    Raises:
        ArtifactError: the file is truncated or altered.
        Misfit: its tensors are others.
    """
    with file.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))
        if size < 8 or length > min(LONGEST_HEADER, size - 8):
            raise ArtifactError(f"{file} is truncated or altered: it has no header")
        try:
            header = json.loads(stream.read(length))
            stored = {name: (entry["shape"], entry["data_offsets"]) for name, entry in header.items() if name != META}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ArtifactError(f"{file} is truncated or altered: its header is none") from None
    whole = 0
    need(stored.keys() == tensors.keys(), f"its tensors are not those in {WEIGHTS}")
    for name, entry in tensors.items():
        shape, _ = stored[name]
        need(shape == entry["shape"], f"{name} has the shape {entry['shape']}, and {str(shape)[:80]} in {WEIGHTS}")
        whole += math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
    if size != 8 + length + whole:
        raise ArtifactError(f"{file} is truncated or altered: it has {size:,} bytes, and its tensors {whole:,}")


META = "__metadata__"
"""Entry of a safetensors header that is no tensor."""
