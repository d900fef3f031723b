"""The sweeps that studies share: strengths, targets and weight sparsities per scale, and lines of jobs over them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from demp.experiments.studies.frontier import DENSE_LINE, Point
from demp.experiments.studies.training import base, noise, training
from demp.experiments.sweep.job import Job
from demp.train.choices import OptimizerName
from demp.train.config import DENSE, TrainConfig

STRENGTHS: dict[tuple[str, str, str], tuple[float, ...]] = {
    ("paper", "resnet18", "adamw"): (1e-4, 5e-4, 1e-3, 2e-3, 3.5e-3, 5e-3, 8e-3, 2.5e-2, 5e-2, 0.1),
    ("paper", "resnet18", "sgdw"): (1e-5, 5e-5, 1e-4, 2e-4, 4e-4, 7.5e-4, 1e-3, 2e-3, 3e-3, 5e-3),
    ("paper", "vgg16", "adamw"): (1e-5, 1e-4, 5e-4, 1e-3, 5e-3, 7.5e-3, 1e-2),
    ("paper", "vgg16", "sgdw"): (1e-4, 3e-4, 5e-4, 1e-3, 2e-3, 4e-3, 7.5e-3, 1.25e-2),
    ("paper", "resnet50", "adamw"): (1e-2, 3e-3, 3e-2, 1e-3, 1e-1),
    ("paper", "resnet50", "sgdw"): (5e-5, 1e-4, 3e-4, 6e-4, 1e-3),
    ("cpu", "resnet18", "adamw"): (5e-3, 2e-3, 1e-2),
    ("cpu", "resnet18", "sgdw"): (8e-3, 4e-3, 1.6e-2),
    ("cpu", "vgg16", "adamw"): (5e-3, 1e-3, 1e-2),
    ("cpu", "vgg16", "sgdw"): (8e-3, 2e-3, 1.6e-2),
    ("cpu", "resnet50", "adamw"): (2e-2, 5e-3, 1e-1),
    ("cpu", "resnet50", "sgdw"): (8e-3, 2e-3, 2e-2),
}
"""Peak strengths of DemP's line: of the lasso on scales, and of L2 on scales for ResNet-50 with Adam. At scale paper
those of the authors' scripts (for ResNet-50 grids of ours around the one value that is known); at scale cpu those that
remove a half to nine tenths of the weights in a short run, the middle one first."""
SMOKE_STRENGTHS = (5e-2,)
TARGETS = {
    "smoke": (0.6,),
    "cpu": (0.55, 0.4, 0.7),
    "paper": (0.5, 0.7, 0.8, 0.9, 0.6, 0.4, 0.85, 0.25, 0.1),
}
"""Neuron sparsities of the methods that have a target."""
WEIGHT_SPARSITIES = {
    "smoke": (0.8,),
    "cpu": (0.8,),
    "paper": (0.8, 0.9, 0.95, 0.7, 0.5, 0.97, 0.925, 0.99, 0.25),
}
"""Of the methods that mask weights."""
NEURON_METHODS = {
    "EarlyCroP-S": "early-crop-s",
    "EarlySNAP": "early-snap",
    "SNAP": "snap",
    "CroPit-S": "cropit-s",
}
"""The structured baselines of the paper."""
DATA_EPOCHS = "EarlyCroP-S, epochs of the data"
"""The moment as published: asked after every pass over the data, also where a run has few of them. The flow is the one
through all trainable parameters: this line was run before there was another."""
GATE_FLOW = ("EarlyCroP-S, gate flow", "CroPit-S, gate flow")
"""The score that the authors of DemP ran; the other lines have the original."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    DATA_EPOCHS: ("early-crop-s", {"epoch_of": "data", "as_published": False}),
    GATE_FLOW[0]: ("early-crop-s", {"score": "gate-flow"}),
    GATE_FLOW[1]: ("cropit-s", {"score": "gate-flow"}),
}
"""Further lines of these methods, and their options."""
COMPARED = {
    "smoke": tuple(NEURON_METHODS),
    "cpu": ("EarlyCroP-S",),
    "paper": (*NEURON_METHODS, *GATE_FLOW),
}
"""The baselines of DemP on CIFAR-10."""
WEIGHT_METHODS = {"RigL": "rigl", "SET": "set", "Mag": "magnitude", "Sal": "saliency"}
"""The unstructured ones."""
SWEPT = {"distribution": "uniform", "dense_first": True}
"""What the authors of DemP gave all four of them in their sweep: S in every tensor, the stem spared."""
REWIRED = {"drop_fraction": 0.3, "drop_schedule": "constant"}
"""What their SET and RigL did besides: the defaults of jaxpruner's classes."""
PANELS: dict[OptimizerName, str] = {"adamw": "Adam", "sgdw": "SGDM"}
"""The paper's word for each optimizer. Decay is decoupled in every run, whatever the method (gaps 10 and 11)."""


def strengths(scale: str, network: str, optimizer: str) -> tuple[float, ...]:
    """DemP's line, the most telling point first."""
    return SMOKE_STRENGTHS if scale == "smoke" else STRENGTHS[scale, network, optimizer]


def coarse(values: Sequence[float], scale: str, many: int = 2) -> tuple[float, ...]:
    """All of them at the paper's scale, else the first few."""
    return tuple(values if scale == "paper" else values[:many])


def options_of(method: str, scale: str) -> dict[str, Any]:
    """Options of a method besides its target: short scorings at scale smoke."""
    return {"scoring_batches": 1, "rounds": 0} if scale == "smoke" and method in NEURON_METHODS.values() else {}


def dense(config: TrainConfig, panel: str, seed: int) -> Job:
    """The dense run of a panel."""
    return training(config, DENSE, seed=seed, labels={"panel": panel, "line": DENSE_LINE, "setting": {}})


def along(
    config: TrainConfig,
    method: str,
    settings: Iterable[Mapping[str, Any]],
    *,
    panel: str,
    line: str,
    seed: int,
    options: Mapping[str, Any] | None = None,
) -> list[Job]:
    """One line: a method at several settings, with options that all of them share."""
    return [
        one(config, method, setting, panel=panel, line=line, seed=seed, options={**(options or {}), **setting})
        for setting in settings
    ]


def one(
    config: TrainConfig,
    method: str,
    setting: Mapping[str, Any],
    *,
    panel: str,
    line: str,
    seed: int,
    options: Mapping[str, Any],
) -> Job:
    """One point of a line; ``setting`` is what moves along it, ``options`` are all options of the method."""
    labels = {"panel": panel, "line": line, "setting": dict(setting)}
    return training(config, method, options, seed=seed, labels=labels)


def demp_line(
    config: TrainConfig,
    values: Sequence[float],
    *,
    panel: str,
    line: str,
    seed: int,
    options: Mapping[str, Any] | None = None,
) -> list[Job]:
    """Return jobs of DemP at several peak strengths."""
    settings = [{"peak_strength": value} for value in values]
    return along(config, "demp", settings, panel=panel, line=line, seed=seed, options=options)


def targeted(
    config: TrainConfig, name: str, targets: Sequence[float], scale: str, *, panel: str, seed: int
) -> list[Job]:
    """The line of a structured baseline, or of a variant of one, over its targets."""
    method, options = VARIANTS.get(name) or (NEURON_METHODS[name], {})
    settings = [{"target_neuron_sparsity": target} for target in targets]
    shared = {**options_of(method, scale), **options}
    return along(config, method, settings, panel=panel, line=name, seed=seed, options=shared)


def masked(config: TrainConfig, name: str, shares: Sequence[float], *, panel: str, seed: int) -> list[Job]:
    """The line of an unstructured baseline over weight sparsities, as in the authors' sweep."""
    options = {**SWEPT, **(REWIRED if name in ("RigL", "SET") else {})}
    settings = [{"weight_sparsity": share} for share in shares]
    return along(config, WEIGHT_METHODS[name], settings, panel=panel, line=name, seed=seed, options=options)


def structured(
    network: str,
    scale: str,
    seed: int,
    names: Sequence[str],
    *,
    activation: str = "",
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Job]:
    """DemP and structured baselines with both optimizers, dense first: Fig. 3, 14 and 15.

    ``more``: further lines of DemP, and their options.
    """
    found: list[Job] = []
    for optimizer, panel in PANELS.items():
        config = base(network, scale, optimizer).merged({"model": {"activation": activation}})
        values = strengths(scale, network, optimizer)
        lines = [
            demp_line(config, values, panel=panel, line=line, seed=seed, options=options)
            for line, options in {"DemP": {}, **(more or {})}.items()
        ]
        for name in names:
            lines.append(targeted(config, name, TARGETS[scale], scale, panel=panel, seed=seed))
        found += [dense(config, panel, seed), *in_turns(lines)]
    return found


def baselines(found: Sequence[Point]) -> list[str]:
    """The lines of structured methods other than DemP that have a point."""
    there = {point.line for point in found}
    return [name for name in (*NEURON_METHODS, *VARIANTS) if name in there]


def in_turns(lines: Sequence[Sequence[Job]]) -> list[Job]:
    """The first of every line, then the second, ..."""
    return [job for turn in zip_longest(*lines) for job in turn if job is not None]


REGULARISERS: dict[str, dict[str, Any]] = {
    "Lasso(γ)": {"penalty": "lasso", "penalty_on": "scales"},
    "L2(γ)": {"penalty": "l2", "penalty_on": "scales"},
    "Lasso": {"penalty": "lasso", "penalty_on": "parameters"},
    "L2": {"penalty": "l2", "penalty_on": "parameters"},
}
"""R of Fig. 2 and 5; without (γ) it acts on everything, shifts, biases and head included (gap 45)."""
NOISES = {
    "smoke": (5e-5, 0.0),
    "cpu": (5e-5, 0.0, 1e-3, 5e-4),
    "paper": (5e-5, 0.0, 1e-4, 5e-4, 1e-3),
}
"""Peak standard deviations in the paper's run length; a shorter run gets those that move weights as far."""


def noise_name(paper_std: float) -> str:
    """The name of a line of this noise."""
    return f"σ {paper_std:g}"


def noise_of(line: str) -> float:
    """The noise of such a line."""
    return float(line.removeprefix("σ "))


def noise_grid(scale: str, seed: int, *, panel: str) -> list[Job]:
    """ResNet-18 with SGDM, noise by strength: the left of Fig. 6 and the right of Fig. 2."""
    config = base("resnet18", scale, "sgdw")
    values = coarse(strengths(scale, "resnet18", "sgdw"), scale)
    return in_turns(
        [
            demp_line(
                config,
                values,
                panel=panel,
                line=noise_name(paper_std),
                seed=seed,
                options={"peak_noise_std": noise("resnet18", config, paper_std)},
            )
            for paper_std in NOISES[scale]
        ]
    )
