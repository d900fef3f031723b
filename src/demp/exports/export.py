"""One export: write into a fresh folder, read back, compare, describe; only then does the folder get its name."""

import json
import math
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from demp.analysis.costs import Cost, cost
from demp.artifact import folder as artifact
from demp.artifact.rebuilding import raise_if_no_constructor
from demp.errors import UsageError
from demp.exports.agreement import BATCH_SIZES, proven
from demp.exports.card import card
from demp.exports.examples import batch_of, rows
from demp.exports.formats import FORMATS, Subject, Written, size_of
from demp.exports.report import ExportReport, Timing
from demp.graph.forward import as_inputs, call_inputs
from demp.parallel import original
from demp.pruner.validation import raise_if_wrapper
from demp.surgery.record import record_of

REPORT, CARD = "export.json", "README.md"


def export(
    model_or_run: nn.Module | str | Path,
    path: str | Path,
    *,
    to: str,
    example_inputs: Any = None,
    build: Callable[[], nn.Module] | None = None,
    measure: bool = False,
    trust: bool = False,
) -> ExportReport:
    """Write a model into the folder ``path`` for others to load, proven against the model itself.

    ``to`` is torch-export, onnx, safetensors or state-dict. Graphs take any batch size. The file is read back and
    must answer as the model does, at several batch sizes, before the folder appears; beside it come ``export.json``
    (the report) and ``README.md`` (a model card).

    ``model_or_run`` is a model, with ``example_inputs`` (a batch of real inputs, as for `demp.trace`), or the folder
    of a finished run, which brings its constructor and images of its own test set. With the constructor ``build`` a
    safetensors export is proven through `demp.load`, and ``measure`` times onnxruntime on the ONNX file beside that of
    the dense model. ``trust`` lets a run's folder name a model of your own, whose code building it runs.

    Raises:
        UsageError: arguments that do not fit, a missing package, a folder that holds other files.
        ExportError: an operation that the format lacks, or outputs that differ; nothing is left in ``path``.
    """
    form = FORMATS.get(to)
    if form is None:
        close = get_close_matches(to, FORMATS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"cannot export to {to!r}; choose one of {', '.join(FORMATS)}{hint}")
    if measure and to != "onnx":
        raise UsageError(f"times are measured with onnxruntime, and {to} is not for it; export to onnx")
    subject = _subject(model_or_run, example_inputs, build, measure, trust)
    _refuse(subject.model)
    path = Path(path)
    with artifact.replacing(path, own=(*form.files, REPORT, CARD)) as folder:
        written = form.write(subject, folder)
        worst, allowed = proven(subject.model, written.answer, subject.inputs, written.file)
        timings = _timings(subject, folder / written.file) if measure else ()
        report = _report(subject, to, path, folder, written, (worst, allowed), timings)
        (folder / REPORT).write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
        (folder / CARD).write_text(card(report, subject.summary, subject.builder), encoding="utf-8")
    return report


def _subject(
    model_or_run: nn.Module | str | Path,
    example_inputs: Any,
    build: Callable[[], nn.Module] | None,
    measure: bool,
    trust: bool,
) -> Subject:
    if not isinstance(model_or_run, nn.Module):
        if example_inputs is not None or build is not None:
            raise UsageError("a run brings its own inputs and constructor; leave example_inputs and build out")
        from demp.exports.runs import subject_of

        return subject_of(model_or_run, trust=trust)
    if example_inputs is None:
        raise UsageError("give example_inputs, a batch of real inputs: the export is proven on them")
    if measure and build is None:
        raise UsageError("give build, the model's constructor: the times are measured beside its dense model")
    if build is not None:
        raise_if_no_constructor(build)
    batch_of(as_inputs(example_inputs))
    return Subject(original(model_or_run), example_inputs, build=build)


def _refuse(model: nn.Module) -> None:
    raise_if_wrapper(model)
    elsewhere = next((t.device for t in (*model.parameters(), *model.buffers()) if t.device.type != "cpu"), None)
    if elsewhere is not None:
        raise UsageError(f"{type(model).__name__} is on {elsewhere}; export it from the CPU: model.cpu()")


def _timings(subject: Subject, file: Path) -> tuple[Timing, ...]:
    """The written ONNX file beside one of the dense network, which is proven just the same."""
    from demp.exports.timing import timed

    assert subject.build is not None
    with torch.random.fork_rng(devices=[]):
        twin = Subject(subject.build(), subject.inputs)
    with TemporaryDirectory() as name:
        dense = FORMATS["onnx"].write(twin, Path(name))
        proven(twin.model, dense.answer, twin.inputs, f"the dense {dense.file}")
        return timed(subject.model, subject.inputs, file, Path(name) / dense.file)


def _report(
    subject: Subject,
    to: str,
    path: Path,
    folder: Path,
    written: Written,
    checked: tuple[float, float],
    timings: tuple[Timing, ...],
) -> ExportReport:
    now, dense = _costs(subject)
    return ExportReport(
        to=to,
        path=str(path),
        file=written.file,
        bytes=size_of(folder, written.file),
        loads_with=written.loads_with,
        model=written.model,
        batch_sizes=BATCH_SIZES,
        examples=min(batch_of(as_inputs(subject.inputs)), max(BATCH_SIZES)),
        difference=checked[0],
        tolerance=checked[1],
        neurons=now.neurons,
        neurons_dense=dense["neurons"],
        parameters=now.parameters,
        parameters_dense=dense["parameters"],
        flops=now.flops,
        flops_dense=dense["flops"],
        timings=timings,
        notes=written.notes,
        options=written.options,
    )


def _costs(subject: Subject) -> tuple[Cost, dict[str, int]]:
    """What the model costs, and what it cost before its first cut, from its record."""
    model = subject.model
    now, record = cost(model, call_inputs(model, *rows(subject.inputs, 1))), record_of(model)
    if record is None:
        return now, {"neurons": now.neurons, "parameters": now.parameters, "flops": now.flops}
    kept = dict(model.named_parameters())
    parameters = sum(math.prod(shape) for name, shape in record.dense_shapes.items() if name in kept)
    flops = round(record.dense_flops * now.flops / max(record.flops, 1))
    return now, {"neurons": record.dense_neurons, "parameters": parameters, "flops": flops}
