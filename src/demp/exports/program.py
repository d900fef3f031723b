"""The model as a graph of `torch.export`, with a free batch size."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from demp.activity.observe import quiet
from demp.errors import ExportError
from demp.exports.agreement import first_line
from demp.exports.examples import Answer, Plain, batch_shapes, is_plain, output_of, plain, rows
from demp.graph.forward import Inputs

logger = logging.getLogger("demp")


def captured(model: nn.Module, example_inputs: Any, batch: int) -> tuple[ExportedProgram, tuple[str, ...]]:
    """The model's graph, traced on ``batch`` examples, and notes about outputs that a graph cannot return.

    Raises:
        ExportError: the forward depends on values, fixes the batch size, or does what `torch.export` cannot follow.
    """
    inputs = rows(example_inputs, batch)
    output = output_of(model, inputs)
    left_out: list[str] = []
    plain(output, left_out)
    traced = model if is_plain(output) else Plain(model)
    with quiet(model), muted():
        try:
            shapes: Any = batch_shapes(inputs)  # a ShapesCollection, which the annotation there leaves out
            program = torch.export.export(traced, *inputs, dynamic_shapes=shapes)
        except Exception as error:  # torch.export lets through whatever the forward and its own passes raise
            raise ExportError(_why(model, error)) from error
    return program, (f"left out of the outputs: {', '.join(left_out)}",) if left_out else ()


def _why(model: nn.Module, error: Exception) -> str:
    name = type(model).__name__
    if "specialized it to be a constant" in str(error):
        return (
            f"{name} fixes its batch size in its forward; let it take any: x.shape[0] where it says len(x) or writes a "
            "number"
        )
    return f"torch.export cannot follow {name}: {first_line(error)}; change its forward, or export the weights alone"


def program_answer(file: Path) -> Answer:
    """What the written program computes when it is read back."""
    with muted():
        module = torch.export.load(file).module()

    def answer(inputs: Inputs) -> list[Tensor]:
        with torch.no_grad():
            output = module(*inputs[0], **inputs[1])
        return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]

    return answer


@contextmanager
def muted() -> Iterator[None]:
    """Exporters print graphs, log and warn about their own inside; what they say goes to the debug log."""
    printed, loud = StringIO(), logging.getLogger("torch")
    level = loud.level
    loud.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(printed), redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        loud.setLevel(level)
        if printed.getvalue():
            logger.debug("the exporter said: %s", printed.getvalue())
