"""The cut of 10 % of ResNet-50's neurons with Adam's state: seconds, and memory that it needs on top.

    .venv/bin/python benchmarks/surgery_time.py

Memory is counted after every tensor operation: all storages that are alive, less those alive at the start. The largest
layer with its state is the largest parameter times three. To reach, without probe forwards: 0.3 s, and at
most that much memory. With the proof (one forward before and one after on two images) old tensors live until it ends.
"""

import statistics
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import demp
from common import arguments, dying, parsed, seconds, show, verdict
from demp.train.models import resnet50

LIMIT_SECONDS = 0.3
SHARE = 0.1
MB = 2**20


def main() -> None:
    """Measure with and without the proof."""
    chosen = parsed(arguments(__doc__, repeats={"type": int, "default": 5}))
    show([measure(verify, chosen.repeats) for verify in (False, True)], chosen.json)


class Subject:
    """A ResNet-50 with Adam's state, a tenth of its neurons dead."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(2, 3, 64, 64)
        self.model: nn.Module = resnet50()
        self.optimizer = torch.optim.Adam(self.model.parameters())
        F.cross_entropy(self.model(self.x), torch.tensor([0, 1])).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = demp.trace(self.model, (self.x,))
        self.dead = dying(self.model, self.graph, SHARE)

    def cut(self, verify: bool) -> None:
        """The cut; the report stays."""
        self.report = demp.cut(
            self.model, self.dead, example_inputs=(self.x,), optimizer=self.optimizer, graph=self.graph, verify=verify
        )

    def tensors(self) -> list[Tensor]:
        """Everything that is there before the cut."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self.model.parameters(), *self.model.buffers(), *moments, self.x]

    def largest(self) -> int:
        """Bytes of the largest parameter and its two moments."""
        return 3 * max(p.numel() * p.element_size() for p in self.model.parameters())


def measure(verify: bool, repeats: int) -> dict[str, Any]:
    """Seconds of several cuts of fresh networks, and the peak of another one."""
    whole, surgery = [], []
    for _ in range(repeats):
        subject = Subject()
        whole.append(seconds(lambda subject=subject: subject.cut(verify)))
        surgery.append(subject.report.surgery_seconds)
    subject = Subject()
    largest = subject.largest()
    with LiveStorage(subject.tensors()) as memory:
        subject.cut(verify)
    peak = memory.peak
    result = {
        "name": f"cut of ResNet-50, {'with' if verify else 'without'} probe forwards",
        "neurons": f"{subject.report.neurons_before} -> {subject.report.neurons_after}",
        "demp_cut_s": round(statistics.median(whole), 3),
        "demp_cut_all_s": [round(value, 3) for value in whole],
        "surgery_alone_s": round(statistics.median(surgery), 3),
        "peak_extra_MB": round(peak / MB, 1),
        "largest_layer_with_state_MB": round(largest / MB, 1),
    }
    if not verify:
        in_time = statistics.median(whole) <= LIMIT_SECONDS
        result |= {"to_reach_s": LIMIT_SECONDS, "time": verdict(in_time), "memory": verdict(peak <= largest)}
    return result


class LiveStorage(TorchDispatchMode):
    """After every operation adds up the storages that are alive; the peak is what was held above the start."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        for tensor in tensors:
            self._see(tensor)
        self.start = self._bytes()
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then count."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        self.peak = max(self.peak, self._bytes() - self.start)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        self._held[reference.cdata] = (reference, storage.nbytes())

    def _bytes(self) -> int:
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        return sum(size for _, size in self._held.values())


if __name__ == "__main__":
    main()
