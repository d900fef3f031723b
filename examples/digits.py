"""What the examples share: the digits of scikit-learn, a small network for them, and a few prints."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import demp

BATCH = 64


def data() -> tuple[TensorDataset, TensorDataset]:
    """1,500 digits to learn from, 297 to be tested on."""
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    x = x.float().view(-1, 1, 8, 8) / 16
    return TensorDataset(x[:1500], y[:1500]), TensorDataset(x[1500:], y[1500:])


def network() -> nn.Module:
    """224 neurons in three layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def show(pruner: demp.Pruner, loss: Tensor) -> None:
    """How far the run is."""
    now = pruner.metrics()
    size = f"neurons {now['prune/neurons_alive']:.0f}  parameters {now['cost/parameters']:.0f}"
    print(f"step {pruner.step:3d}  loss {loss.item():.3f}  {size}")


@torch.no_grad()
def test(model: nn.Module, digits: TensorDataset) -> None:
    """How good the network is, and how large."""
    x, y = digits.tensors
    print(f"right on {(model.eval()(x).argmax(1) == y).float().mean():.1%} of the test digits")
    print(demp.cost(model, (x[:1],)))
