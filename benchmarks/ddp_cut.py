"""A cut under DistributedDataParallel over the same cut in one process: to reach, at most twice the time.

    .venv/bin/python benchmarks/ddp_cut.py

Two ranks (gloo, CPU, one thread each) hold the same ResNet-18 with Adam's state, a tenth of its neurons dead. A pair is
one cut of the bare model and one of the wrapped model, of fresh networks, timed on rank 0 while the other rank does the
same, so that both meet the same load. The cut is the whole of it: agreement of the plans, proof on two images,
surgery, the new reducer. "Surgery" leaves the proof out. The first training step after the cut is timed too, because
the new reducer orders its buckets there; it contains the averaging of gradients, which one process does not have.
"""

import socket
import sys
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import demp
from common import Ratio, arguments, dying, parsed, seconds, show
from demp.train.models import resnet18

LIMIT = 2.0
SHARE = 0.1
RANKS = 2


def main() -> None:
    """Measure in two processes; rank 0 prints."""
    chosen = parsed(arguments(__doc__, pairs={"type": int, "default": 9}, width={"type": int, "default": 64}))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(measure, (port, chosen), nprocs=RANKS)  # pyright: ignore[reportPrivateImportUsage]


class Subject:
    """A ResNet-18 with Adam's state, a tenth of its neurons dead, wrapped or not."""

    def __init__(self, width: int, wrapped: bool) -> None:
        torch.manual_seed(0)
        self.x, self.y = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
        self.model: nn.Module = resnet18(width=width / 64)
        self.trained = DistributedDataParallel(self.model) if wrapped else self.model
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.step()
        self.graph = demp.trace(self.model, (self.x,))
        self.dead = dying(self.model, self.graph, SHARE)

    def step(self) -> None:
        """One training step; its gradients are gone afterwards."""
        F.cross_entropy(self.trained(self.x), self.y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def cut(self, verify: bool) -> None:
        """The cut."""
        demp.cut(
            self.trained,
            self.dead,
            example_inputs=(self.x,),
            optimizer=self.optimizer,
            graph=self.graph,
            verify=verify,
        )


def measure(rank: int, port: int, chosen: Any) -> None:
    """One rank's part; the bare cut runs without a process group, as one process would."""
    torch.set_num_threads(1)
    store = dist.TCPStore("localhost", port, RANKS, rank == 0)  # pyright: ignore[reportPrivateImportUsage]
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ("cut", "surgery", "first step")}
    for pair in range(-1, chosen.pairs):  # the first warms up
        for wrapped in (False, True) if pair % 2 else (True, False):
            store.set(f"{pair}/{wrapped}/{rank}", "here")
            store.wait([f"{pair}/{wrapped}/{other}" for other in range(RANKS)])
            found = timed(chosen.width, wrapped, pair, rank, store)
            if pair >= 0:
                for name, value in found.items():
                    times[name][wrapped].append(value)
    if rank == 0:
        limits = {"cut": LIMIT, "surgery": LIMIT, "first step": None}
        title = f"ResNet-18, width {chosen.width}, {RANKS} gloo ranks over one process"
        show([Ratio(f"{title}, {name}", *times[name], limit=limits[name]) for name in times], chosen.json)
    sys.stdout.flush()


def timed(width: int, wrapped: bool, pair: int, rank: int, store: Any) -> dict[str, float]:
    """Seconds of a cut with its proof, of one without, and of the step after it."""
    if wrapped:
        prefixed = dist.PrefixStore(f"group/{pair}", store)  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group("gloo", store=prefixed, rank=rank, world_size=RANKS)
    try:
        proven, bare = Subject(width, wrapped), Subject(width, wrapped)
        whole = seconds(lambda: proven.cut(True))
        surgery = seconds(lambda: bare.cut(False))
        return {"cut": whole, "surgery": surgery, "first step": seconds(bare.step)}
    finally:
        if wrapped:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
