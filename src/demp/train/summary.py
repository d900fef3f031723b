"""What a finished run comes to, beside the dense network that it started from."""

from pathlib import Path
from typing import Any

import torch

import demp
from demp.analysis.costs import flops_if_zeros_were_free
from demp.files.run import FORWARD_AND_BACKWARD
from demp.train.run import Run

WEIGHTS = "model.safetensors"


def summarise(run: Run, scores: dict[str, Any], step_seconds: float, artifact: Path | None) -> dict[str, Any]:
    """Names and plain values, JSON-ready.

    ``flops`` are of one forward of one image, ``train_flops`` of the whole run with its checks and scorings:
    three forwards per training image, one per image of a death check; ``scoring_flops`` are the part of checks and
    scorings. ``weight_sparsity`` is of removed weights; ``masked_share`` of those that are there and held at zero.
    ``file_bytes`` is the size of the file of weights.
    """
    graph = demp.trace(run.model, run.example)
    now, dense, config = demp.cost(run.model, run.example, graph=graph), run.dense_cost, run.config
    examples = run.step * config.batch_size
    masked = 0 if run.pruner is None else run.pruner.masks.masked()
    summary = {
        "recipe": config.recipe,
        "model": config.model.name,
        "data": config.data.name,
        "method": config.method.name,
        "seed": config.seed,
        "config_hash": config.identity(),
        "initial_weights": run.initial_weights,
        "torch": str(torch.__version__),
        "steps": run.step,
        "test_images": len(run.data.test),
        **scores,
    }
    for name in ("neurons", "parameters", "flops", "paper_flops", "bytes"):
        summary[name] = getattr(now, name)
        summary[f"{name}_dense"] = getattr(dense, name)
    return summary | {
        "neuron_sparsity": 1 - now.neurons / dense.neurons if dense.neurons else 0.0,
        "weight_sparsity": 1 - now.parameters / dense.parameters,
        "weights_masked": masked,
        "masked_share": masked / dense.parameters,
        "flops_if_zeros_were_free": flops_if_zeros_were_free(run.model, run.example, graph=graph),
        "train_flops": run.flops_spent,
        "scoring_flops": run.scoring_flops,
        "train_flops_dense": float(FORWARD_AND_BACKWARD * dense.flops * examples),
        "train_seconds": run.seconds,
        "step_ms_at_end": 1e3 * step_seconds,
        "images_per_s_at_end": config.batch_size / step_seconds if step_seconds else 0.0,
        "file_bytes": (artifact / WEIGHTS).stat().st_size if artifact else 0,
    }
