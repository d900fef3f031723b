"""Fig. 17: live neurons in three blocks of a vision transformer."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from demp.experiments.studies import transformer
from demp.experiments.studies.base import Claim, Study, Table
from demp.experiments.studies.drawing import band, frame, legend, looks, panels
from demp.experiments.studies.frontier import DENSE_LINE, percent
from demp.experiments.studies.transformer import DEPTH, blocks, name_of
from demp.experiments.sweep.job import Job
from demp.files.results import Result, Results

FELL, ROSE = 0.1, 0.05
"""Shares of a block's neurons: so many must die for a fall, so many return after the lowest point for a revival."""


class Fig17(Study):
    """Share of live neurons over steps in the first, the sixth and the last block."""

    id: ClassVar[str] = "fig17"
    title: ClassVar[str] = "ViT-B/16 on ImageNet: live neurons of the MLPs over the training"
    section: ClassVar[str] = "App. G.2"
    remark: ClassVar[str] = (
        "Shares instead of counts, so that widths compare; neurons that were removed count as dead. With GELU a neuron "
        "is dead by the authors' test, a sum of outputs that is not positive. At scale cpu the network has an eighth "
        "of its width and sees Imagenette at 64 pixels in patches of 8."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Return the jobs of Table 3, whose runs this figure shares."""
        return transformer.runs(scale, seed)

    def figure(self, records: Results, scale: str) -> Any:
        """Draw live neurons over steps, one panel per block."""
        shown = blocks(scale)
        figure, axes = panels(len(shown), share_y=True)
        look = looks([record["labels"]["line"] for record in records])
        for here, block in zip(axes, shown, strict=True):
            for name, style in look.items():
                steps, live = over_time([r for r in records if r["labels"]["line"] == name], block)
                if steps:
                    band(here, steps, live, {"color": style["color"]}, name)
            frame(here, f"block {block}", "step", "live neurons, %")
            here.set_ylim(0, 102)
        legend(figure)
        return figure

    def table(self, records: Results, scale: str) -> Table:
        """Live share at the start, at the lowest point and at the end."""
        rows = []
        for record in records:
            for block in blocks(scale):
                line = live_of(record, block)
                if line:
                    shares = [share for _, share in line]
                    lowest = min(line, key=lambda point: point[1])
                    name = record["labels"]["line"]
                    cells = (percent(shares[0]), f"{percent(lowest[1])} at step {lowest[0]}", percent(shares[-1]))
                    rows.append((name, str(record["labels"]["seed"]), str(block), *cells))
        return Table(("line", "seed", "block", "live at the start", "lowest", "live at the end"), tuple(rows))

    def claims(self, records: Results) -> list[Claim]:
        """The last block revives, the others do not; most neurons die in dense training."""
        dense = [record for record in records if record["labels"]["line"] == DENSE_LINE]
        revived, others = revivals(dense)
        died = [dict(map(tuple, r["series"]["dead/share"])) for r in dense if r.get("series", {}).get("dead/share")]
        final = [list(line.values())[-1] for line in died]
        return [
            Claim(
                sentence="Even in dense training most neurons of the MLPs are dead at the end.",
                paper="90 %",
                ours=", ".join(percent(share) for share in final),
                holds=all(share > 0.5 for share in final) if final else None,
            ),
            Claim(
                sentence="In the last block neurons die early and come back to life in dense training.",
                paper="from about 3,000 to a few hundred, then back to most",
                ours=", ".join(revived.values()),
                holds=all(text.endswith("revives") for text in revived.values()) if revived else None,
            ),
            Claim(
                sentence="In the other blocks neurons that die in dense training stay dead.",
                paper="no revival in blocks 1 and 6",
                ours=", ".join(others.values()),
                holds=not any(text.endswith("revives") for text in others.values()) if others else None,
            ),
        ]


def live_of(record: Result, block: int) -> list[tuple[int, float]]:
    """(step, live share) of a block."""
    return [(int(step), 1 - share) for step, share in record.get("series", {}).get(name_of(block), ())]


def over_time(records: Sequence[Result], block: int) -> tuple[list[float], list[list[float]]]:
    """Steps, and the live shares in percent of all seeds at each."""
    found: dict[int, list[float]] = {}
    for record in records:
        for step, share in live_of(record, block):
            found.setdefault(step, []).append(100 * share)
    return [float(step) for step in found], list(found.values())


def revivals(records: Sequence[Result]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """What the last block of each run does, and what the other watched blocks do."""
    last, others = dict[str, str](), dict[str, str]()
    for record in records:
        watched = [block for block in range(1, max(DEPTH.values()) + 1) if live_of(record, block)]
        for block in watched:
            shares = [share for _, share in live_of(record, block)]
            lowest, end = min(shares), shares[-1]
            words = "revives" if shares[0] - lowest > FELL and end - lowest > ROSE else "does not revive"
            text = f"block {block}: {100 * lowest:.0f} % at the lowest, {100 * end:.0f} % at the end, {words}"
            place = last if block == watched[-1] else others
            place[f"{record['name']}, block {block}"] = text
    return last, others
