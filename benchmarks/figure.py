"""One figure of a network shrinking while it learns: ``python benchmarks/figure.py RUN -o docs/shrinking.svg``."""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

INK, ACCENT, SOFT = "#1f2933", "#0b6e99", "#d9822b"


def main() -> None:
    """Read a run folder, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/shrinking.svg"))
    options = parser.parse_args()
    metrics, cuts = lines(options.run / "metrics.jsonl"), lines(options.run / "cuts.jsonl")
    figure = draw(metrics, cuts)
    figure.savefig(options.out, metadata={"Date": None})
    print(f"written: {options.out}")


def lines(file: Path) -> list[dict[str, Any]]:
    """Records of a JSON-lines file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def draw(metrics: list[dict[str, Any]], cuts: list[dict[str, Any]]) -> Any:
    """Left: width of every layer over time. Right: parameters, loss, strength and step time on the same steps."""
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "svg.hashsalt": "demp", "axes.edgecolor": INK})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained", width_ratios=(1.15, 1))
    widths(left, cuts)
    curves(right, metrics, cuts)
    return figure


def widths(axes: Any, cuts: list[dict[str, Any]]) -> None:
    """A heat map: share of each layer's neurons that is left."""
    names = list(cuts[0]["layers"])
    dense = [cuts[0]["layers"][name]["before"] for name in names]
    steps = [0, *(cut["step"] for cut in cuts)]
    kept = {name: [cut["layers"][name]["kept"] for cut in cuts] for name in names}
    rows = [[1.0, *(k / full for k in kept[name])] for name, full in zip(names, dense, strict=True)]
    edges = [*steps, steps[-1] + max(1, steps[-1] // 50)]
    mesh = axes.pcolormesh(edges, range(len(names) + 1), rows, cmap="cividis", vmin=0, vmax=1)
    axes.set_yticks([i + 0.5 for i in range(len(names))], [f"{n} ({w})" for n, w in zip(names, dense, strict=True)])
    axes.tick_params(axis="y", labelsize=6.5, length=0)
    axes.invert_yaxis()
    axes.set_xlabel("step")
    axes.set_title("neurons left, per layer", loc="left", fontsize=9, fontweight="bold")
    axes.figure.colorbar(mesh, ax=axes, pad=0.01, format=lambda x, _: f"{100 * x:.0f} %")


def curves(axes: Any, metrics: list[dict[str, Any]], cuts: list[dict[str, Any]]) -> None:
    """Shares of their first or highest value, so that all fit on one axis."""
    logged = [m for m in metrics if "train/loss" in m]
    steps = [m["step"] for m in logged]

    def share(name: str) -> list[float]:
        top = max(m[name] for m in logged) or 1.0
        return [m[name] / top for m in logged]

    parameters = [1.0, *(c["parameters_after"] / cuts[0]["parameters_before"] for c in cuts)]
    when = [0, *(c["step"] for c in cuts)]
    axes.plot(when, parameters, drawstyle="steps-post", color=ACCENT, linewidth=2, label="parameters")
    axes.plot(steps, share("train/loss"), color=INK, linewidth=0.9, label="training loss")
    axes.plot(steps, share("demp/strength"), color=SOFT, linewidth=1.2, linestyle="--", label="strength")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, steps[-1])
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
    axes.set_xlabel("step")
    axes.set_title("share of the start, or of the peak", loc="left", fontsize=9, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")


if __name__ == "__main__":
    main()
