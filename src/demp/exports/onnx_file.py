"""An ONNX file: written by torch's exporter, read back by onnxruntime."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from demp.errors import ExportError
from demp.exports.agreement import first_line
from demp.exports.examples import Answer, named_tensors, output_of, plain, rows
from demp.exports.program import muted
from demp.graph.forward import Inputs
from demp.train.extras import need

EXTRA = "export"
OPERATION = re.compile(r"target=torch\.ops\.([\w.]+)|op='([\w.]+)'")
MISSING = re.compile(r"implementation for (\w+)\(")


def require() -> None:
    """Say which package is missing before any work is done."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package, EXTRA)


def write(model: nn.Module, program: ExportedProgram, example_inputs: Any, file: Path) -> None:
    """Translate the graph; inputs and outputs carry the names of the model's arguments and outputs.

    Raises:
        ExportError: an operation that ONNX lacks, by name.
    """
    inputs = rows(example_inputs, 1)
    names = list(named_tensors(model, inputs))
    with muted():
        try:
            translated = torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=names, output_names=output_names(model, inputs)
            )
        except Exception as error:  # the exporter's errors are private, and an operator may raise anything
            raise ExportError(_why(model, error)) from error
        assert translated is not None
        translated.save(file)


def _why(model: nn.Module, error: Exception) -> str:
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None:
        chain.append(step)
        step = step.__cause__ or step.__context__
    found = next((match for each in reversed(chain) if (match := OPERATION.search(str(each)))), None)
    operation = f"the operation {found[1] or found[2]} of {type(model).__name__}" if found else type(model).__name__
    reason = first_line(chain[-1]).split(" for <")[0]
    return (
        f"the ONNX exporter cannot translate {operation} ({reason}); replace it in the model, or use --to torch-export"
    )


def output_names(model: nn.Module, inputs: Inputs) -> list[str]:
    """Keys of a dict of outputs; else output, numbered if there are several."""
    output = plain(output_of(model, inputs), [])
    if not isinstance(output, dict):
        output = {"output": output}
    names = []
    for key, part in output.items():
        tensors = [leaf for leaf in tree_leaves(part) if isinstance(leaf, Tensor)]
        names += [str(key) if len(tensors) == 1 else f"{key}_{index}" for index in range(len(tensors))]
    return names


def session(file: Path, what: str) -> Any:
    """The file in onnxruntime on the processor, with as many threads as torch uses.

    Raises:
        ExportError: onnxruntime cannot run it.
    """
    runtime = need("onnxruntime", EXTRA)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base but Exception
        missing = MISSING.search(str(error))
        reason = f"it has no {missing[1]} for these types" if missing else first_line(error)
        raise ExportError(f"onnxruntime cannot run {what}: {reason}; use --to torch-export") from error


def feed(model: nn.Module, loaded: Any, inputs: Inputs) -> dict[str, Any]:
    """The inputs by name, as far as the graph reads them."""
    read = {entry.name for entry in loaded.get_inputs()}
    return {name: tensor.numpy() for name, tensor in named_tensors(model, inputs).items() if name in read}


def answer(model: nn.Module, file: Path) -> Answer:
    """What the written graph computes when it is read back."""
    loaded = session(file, type(model).__name__)

    def run(inputs: Inputs) -> list[Tensor]:
        return [torch.from_numpy(array) for array in loaded.run(None, feed(model, loaded, inputs))]

    return run
