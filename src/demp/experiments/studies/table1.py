"""Table 1: ResNet-50 on ImageNet with Adam."""

from collections.abc import Sequence
from typing import ClassVar

from demp.experiments.studies import grids, imagenet
from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import DENSE_LINE
from demp.experiments.studies.imagenet import Cheaper
from demp.experiments.studies.quoted import Quoted, Quoting
from demp.experiments.sweep.job import Job
from demp.files.results import Results

OURS = "DemP-L2"


class Table1(Quoting):
    """Structured methods near 80 and 90 % weight sparsity."""

    id: ClassVar[str] = "table1"
    title: ClassVar[str] = "ResNet-50 on ImageNet with Adam, near 80 and 90 % weight sparsity"
    section: ClassVar[str] = "Sec. 4.1"
    remark: ClassVar[str] = (
        "At scale cpu ResNet-50 has a quarter of its width and sees Imagenette at 64 pixels: accuracies compare within "
        "a column only."
    )
    panel: ClassVar[str] = "Adam"
    rows: ClassVar[tuple[Quoted, ...]] = (
        Quoted(DENSE_LINE, None, 74.98, 0.08, time=1.0, train_flops=1.0, flops=1.0),
        Quoted("SNAP", 0.8, 28.28, 0.08, 36.9, 81.4, 0.51, 0.32, 0.32),
        Quoted("SNAP", 0.9, 27.17, 0.07, 56.0, 90.1, 0.48, 0.25, 0.25),
        Quoted("CroPit-S", 0.8, 28.34, 0.52, 36.9, 81.4, 0.52, 0.32, 0.32),
        Quoted("CroPit-S", 0.9, 27.36, 0.16, 53.2, 89.9, 0.47, 0.27, 0.27),
        Quoted("EarlySNAP", 0.8, 68.67, 0.15, 51.70, 80.37, 0.95, 0.63, 0.63),
        Quoted("EarlySNAP", 0.9, 63.80, 0.58, 66.6, 90.06, 0.75, 0.46, 0.45),
        Quoted("EarlyCroP-S", 0.8, 68.26, 0.31, 51.60, 79.97, 0.94, 0.66, 0.66),
        Quoted("EarlyCroP-S", 0.9, 64.20, 0.27, 66.6, 90.37, 0.82, 0.51, 0.50),
        Quoted(OURS, 0.8, 71.52, 0.09, 61.83, 80.13, 0.81, 0.57, 0.49),
        Quoted(OURS, 0.9, 66.34, 0.16, 74.1, 89.93, 0.61, 0.42, 0.34),
    )

    def others(self) -> Sequence[str]:
        """SNAP on a network whose branches it can see, and the authors' score of CroP."""
        return (imagenet.FAIR, *grids.GATE_FLOW)

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Return the jobs of all structured methods with Adam."""
        return imagenet.structured(scale, "adamw", self.panel, OURS, seed)

    def claims(self, records: Results) -> list[Claim]:
        """2.85 and 2.14 points; less time, fewer FLOPs."""
        margins = {
            0.8: "71.52 % at 80.1 %, 2.85 points above EarlySNAP",
            0.9: "66.34 % at 89.9 %, 2.14 points above EarlyCroP-S",
        }
        cheaper = (
            Cheaper(cost="time", near=0.8, paper="0.81 of dense training against 0.94 and 0.95"),
            Cheaper(cost="time", near=0.9, paper="0.61 of dense training against 0.82 and 0.75"),
            Cheaper(cost="train_flops", near=0.9, paper="0.42 of dense training against 0.51 and 0.46"),
            Cheaper(cost="flops", near=0.9, paper="0.34 of the dense network against 0.50 and 0.45"),
        )
        return imagenet.claims(records, self.panel, OURS, margins, "28 % against 74.98 % dense", cheaper)
