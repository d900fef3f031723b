"""A PlainNet trained by the book: penalties by autograd, removed neurons as zeros that stay zero."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import demp
from runs import IMAGE, PlainNet, build, loss_of

OWNS = {
    "act1": (("conv1.weight", 0, 1), ("norm1.weight", 0, 1), ("norm1.bias", 0, 1), ("conv2.weight", 1, 1)),
    "act2": (
        ("conv2.weight", 0, 1), ("conv2.bias", 0, 1), ("norm2.weight", 0, 1), ("norm2.bias", 0, 1), ("fc.weight", 1, 4),
    ),
    "act3": (("fc.weight", 0, 1), ("fc.bias", 0, 1), ("head.weight", 1, 1)),
}  # fmt: skip
"""Layer -> (tensor, axis, consecutive entries per neuron) of everything that goes with its neurons."""
WEIGHTS = ("conv1.weight", "conv2.weight", "fc.weight", "head.weight")
MAKES = {"act1": "conv1.weight", "act2": "conv2.weight", "act3": "fc.weight"}
SCALES = {"act1": "norm1.weight", "act2": "norm2.weight"}
WIDTHS = {"act1": 6, "act2": 5, "act3": 7}


class Twin:
    """The dense network of a run that removes neurons."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        self.model = copy.deepcopy(model)
        self.tensors = dict(self.model.named_parameters())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)
        self.gone: dict[str, list[int]] = {name: [] for name in OWNS}

    def step(self, step: int, penalty: Callable[["Twin"], Tensor | float]) -> float:
        """One step on the loss plus this penalty; the loss alone."""
        self.optimizer.zero_grad()
        loss = loss_of(self.model, step, IMAGE)
        (loss + penalty(self)).backward()
        for tensor in self.tensors.values():
            assert tensor.grad is not None
        self._zero(lambda tensor: tensor.grad)
        self.optimizer.step()
        return loss.item()

    def remove(self, neurons: dict[str, list[int]]) -> None:
        """These neurons are zero from now on."""
        for name, chosen in neurons.items():
            self.gone[name] += chosen
        self._zero(lambda tensor: tensor.data)
        self._zero(lambda tensor: self.optimizer.state[tensor].get("momentum_buffer"))

    def _zero(self, of: Callable[[Tensor], Tensor | None]) -> None:
        for name, owned in OWNS.items():
            for tensor, axis, run in owned:
                places = torch.tensor([run * i + k for i in self.gone[name] for k in range(run)], dtype=torch.long)
                found = of(self.tensors[tensor])
                if found is not None:
                    found.index_fill_(axis, places, 0.0)

    def slices(self, name: str, of: str, i: int) -> Tensor:
        """What tensor ``of`` holds of neuron ``i``."""
        axis, run = next((axis, run) for tensor, axis, run in OWNS[name] if tensor == of)
        return self.tensors[of].narrow(axis, run * i, run)

    def left(self, name: str) -> list[int]:
        """Neurons that are there."""
        return [i for i in range(WIDTHS[name]) if i not in self.gone[name]]


def run_both(pruner: demp.Pruner, twin: Twin, steps: range, penalty, cut) -> None:
    """Train both; ``penalty(step, twin)`` and ``cut(steps done, twin)`` are the twin's method."""
    optimizer = pruner.optimizers[0]
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(pruner.model, step, IMAGE)
        loss.backward()
        optimizer.step()
        expected = twin.step(step, lambda t, step=step: penalty(step, t))
        assert abs(loss.item() - expected) < 1e-9
        cut(step + 1, twin)
        for name in OWNS:
            gone = pruner.state.removed[pruner.graph.layer(name).classes]
            assert gone.nonzero().flatten().tolist() == sorted(twin.gone[name]), (step, name)
        compare(pruner.model, twin)


def compare(model: nn.Module, twin: Twin) -> None:
    """What stayed has the twin's values."""
    record = demp.surgery.record_of(model)
    for name, parameter in model.named_parameters():
        expected = twin.tensors[name].detach()
        for (owner, axis), kept in (record.kept if record is not None else {}).items():
            expected = expected.index_select(axis, kept) if owner == name else expected
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-8, atol=1e-10)


def plain(lr: float, **options) -> tuple[PlainNet, torch.optim.Optimizer]:
    """A PlainNet with scales that differ, and its optimizer."""
    model = build(PlainNet, seed=3, **options)
    generator = torch.Generator().manual_seed(5)
    for norm in (model.norm1, model.norm2):
        norm.weight.data.copy_(0.5 + torch.rand(len(norm.weight), generator=generator, dtype=torch.float64))
    return model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)  # type: ignore[return-value]
