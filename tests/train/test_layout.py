"""A layout in which a network trains: where torch's code for channels_last is wrong, the plain one."""

import pytest
import torch
from torch import nn

from demp.train import layout
from demp.train.models import build


def resnet(width):
    return build(name="resnet18", num_classes=10, in_channels=3, image_size=32, width=width, activation=None)


@pytest.mark.parametrize(
    ("capability", "width", "expected"),
    [
        ("AVX2", 1 / 16, torch.contiguous_format),
        ("AVX2", 1 / 4, torch.channels_last),
        ("DEFAULT", 1 / 16, torch.contiguous_format),
        ("AVX512", 1 / 16, torch.channels_last),
    ],
)
def test_the_layout_follows_processor_and_widths(monkeypatch, capability, width, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert layout.layout_of(resnet(width), True) == expected
    assert layout.layout_of(resnet(width), False) == torch.contiguous_format


@pytest.mark.parametrize(
    ("conv", "risky"),
    [
        (nn.Conv2d(7, 8, 1, stride=2), True),
        (nn.Conv2d(8, 8, 1, stride=2), False),
        (nn.Conv2d(7, 8, 1), False),
        (nn.Conv2d(7, 8, 3, stride=2, padding=1), False),
        (nn.Linear(7, 8), False),
    ],
)
def test_which_convolutions(conv, risky):
    assert layout.is_risky(conv) is risky


def test_a_narrow_network_trains_on_this_processor():
    model = resnet(1 / 16)
    form = layout.layout_of(model, True)
    model = model.to(memory_format=form)
    x = torch.randn(16, 3, 32, 32).contiguous(memory_format=form)
    for _ in range(5):
        model(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
