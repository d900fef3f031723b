"""The model card: what a stranger needs to know, from the report of the export and the summary of the run alone."""

from collections.abc import Mapping
from typing import Any

from demp import __version__
from demp.exports.report import ExportReport

LOADING = {
    "torch.export.load": """import torch

model = torch.export.load("{file}").module()""",
    "onnxruntime": """import onnxruntime

session = onnxruntime.InferenceSession("{file}")
print([(entry.name, entry.shape) for entry in session.get_inputs()])""",
    "torch.load": """import torch

state = torch.load("{file}", weights_only=True)""",
    "demp.load": """import demp

model = demp.load(build, ".")  # build() makes the dense network""",
    "trainer": """from demp.train import artifact

model, facts = artifact.load(".")""",
    "transformers": """from transformers import {model}

model = {model}.from_pretrained({arguments})""",
}
"""How each kind of file is read, from inside its folder."""


def card(report: ExportReport, summary: Mapping[str, Any] | None, builder: Mapping[str, Any] | None) -> str:
    """Return the model card as Markdown text."""
    name = builder["model"]["name"] if builder else report.model
    parts = [f"# {name}\n\nWritten by demp {__version__} (`--to {report.to}`)."]
    if summary:
        parts.append(_training(summary))
    parts.append(_numbers(report, summary))
    parts += [f"Note: {note}." for note in report.notes]
    if builder and "data" in builder:
        parts.append(_inputs(builder["data"]))
    way = "trainer" if report.loads_with == "demp.load" and builder else report.loads_with
    arguments = ", ".join(['"."', *filter(None, [report.options])])
    code = LOADING[way].format(file=report.file, model=report.model, arguments=arguments)
    parts.append(f"## Load it\n\n```python\n{code}\n```")
    parts.append(_check(report))
    if report.timings:
        parts.append(_speed(report))
    return "\n\n".join(parts) + "\n"


def _training(summary: Mapping[str, Any]) -> str:
    recipe = f", recipe {summary['recipe']}" if summary["recipe"] else ""
    return (
        f"Trained on {summary['data']} for {summary['steps']:,} steps{recipe}, method {summary['method']}, "
        f"seed {summary['seed']}, torch {summary['torch']}."
    )


def _numbers(report: ExportReport, summary: Mapping[str, Any] | None) -> str:
    lines = ["| | this network | dense | ratio |", "| --- | --- | --- | --- |"]
    if summary:
        split = summary.get("split", "test")
        what = (
            "validation accuracy (images held out of the training split)" if split == "validation" else "test accuracy"
        )
        lines.append(f"| {what} | {summary['eval/top1']:.2%} | | |")
    for label, key in (("neurons", "neurons"), ("parameters", "parameters"), ("FLOPs of one example", "flops")):
        now, dense = getattr(report, key), getattr(report, f"{key}_dense")
        ratio = f"{now / dense:.3f}" if dense else ""
        lines.append(f"| {label} | {now:,} | {dense:,} | {ratio} |")
    return "\n".join(lines)


def _inputs(facts: Mapping[str, Any]) -> str:
    shape = f"({facts['channels']}, {facts['image_size']}, {facts['image_size']})"
    if facts["normalize"] == "image":
        scaling = "each normalised by its own mean and deviation"
    else:
        values = [", ".join(f"{value:.6g}" for value in facts[name]) for name in ("mean", "std")]
        scaling = f"normalised per channel with mean {values[0]} and deviation {values[1]}"
    logits = f"one logit for each of {facts['num_classes']} classes"
    return f"Input: images {shape}, values from 0 to 1, {scaling}. Output: {logits}."


def _check(report: ExportReport) -> str:
    sizes = ", ".join(map(str, report.batch_sizes))
    return (
        f"## Check\n\n`{report.file}` ({report.bytes:,} bytes) was read back and compared with the model in PyTorch on "
        f"{report.examples} real examples, in batches of {sizes}: the largest difference is {report.difference:.1e} of "
        f"the output scale; up to {report.tolerance:g} was allowed."
    )


def _speed(report: ExportReport) -> str:
    lines = [
        "## Speed\n",
        f"onnxruntime on a CPU; medians of {report.timings[0].pairs} pairs, this network and the dense one in turns:\n",
        "| batch | latency, ms | dense, ms | latency ratio | throughput ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for t in report.timings:
        lines.append(
            f"| {t.batch} | {t.latency_ms:.3f} | {t.dense_latency_ms:.3f} | {t.latency_ratio:.2f} | "
            f"{t.throughput_ratio:.2f} |"
        )
    return "\n".join(lines)
