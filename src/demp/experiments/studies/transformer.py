"""What Fig. 17 and Table 3 share: ViT-B/16 dense, with DemP, and with DemP and ReLU."""

from demp.experiments.studies.frontier import DENSE_LINE
from demp.experiments.studies.training import base, training
from demp.experiments.sweep.job import Job

PANEL = "AdamW"
GELU, RELU, STRICT = "DemP", "DemP + ReLU", "DemP, peak below 1 %"
BLOCKS = (1, 6, 12)
"""Those of Fig. 17, counted from 1."""
DEPTH = {"smoke": 3, "cpu": 12, "paper": 12}
LOOKS = {"smoke": 4, "cpu": 50, "paper": 100}
"""How often death is looked at."""


def runs(scale: str, seed: int) -> list[Job]:
    """Noise alone, no penalty. With GELU a neuron is dead by the authors' test, the sum of its outputs (gap 13)."""
    config = base("vit_b_16", scale)
    look = {"every_steps": max(1, config.steps // LOOKS[scale]), "criterion": "sum"}
    gelu = config.merged({"monitor": look})
    relu = config.merged({"monitor": {**look, "criterion": "auto"}, "model": {"activation": "relu"}})
    series = ["dead/share", *(name_of(block) for block in blocks(scale))]
    lines = (
        (DENSE_LINE, gelu, "dense", {}),
        (GELU, gelu, "demp", {"criterion": "sum"}),
        (RELU, relu, "demp", {}),
        (STRICT, gelu, "demp", {"criterion": "epsilon"}),
    )
    return [
        training(
            its,
            method,
            options,
            seed=seed,
            labels={"panel": PANEL, "line": line, "setting": {}},
            series=series,
        )
        for line, its, method, options in lines
        if scale != "smoke" or line != STRICT
    ]


def blocks(scale: str) -> tuple[int, ...]:
    """The first, middle and last block of the network of this scale."""
    depth = DEPTH[scale]
    return BLOCKS if depth == 12 else (1, (depth + 1) // 2, depth)


def name_of(block: int) -> str:
    """The metric of a block's dead share."""
    return f"dead/share/blocks.{block - 1}.mlp.act"
