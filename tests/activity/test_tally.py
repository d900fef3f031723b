"""What is collected over batches: the same whatever of them is looked at again."""

import copy
import pickle

import pytest
import torch
from torch import nn

import demp
from demp.activity import Criterion
from demp.activity import tally as tally_module
from demp.activity.moments import Moments
from demp.activity.tally import Peaks, Tally

WIDTH, PLACES = 8, 9


def network() -> nn.Module:
    """A convolution whose channels are read one by one, and nine by nine after flattening."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(WIDTH * PLACES, 3))
    return nn.Sequential(
        *(nn.Conv2d(1, WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()), head
    )


def batches(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the two readers see, batch by batch: most channels zero in most batches, some in all."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(5):
        maps = torch.randn(4, WIDTH, 3, 3, generator=random).clamp(min=0)
        maps *= torch.rand(1, WIDTH, 1, 1, generator=random) < 0.3
        maps *= torch.rand(maps.shape, generator=random) < 0.1
        made.append((maps.contiguous(memory_format=torch.channels_last), maps.flatten(1)))
    return made


@pytest.mark.parametrize("kind", ["exact", "negative-only", "sum", "epsilon"])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_neuron_is_dead_if_every_batch_says_so(kind, relative, seed):
    graph = demp.trace(network(), (torch.zeros(1, 1, 3, 3),))
    criterion = Criterion(kind=kind, relative=relative)
    tally, seen = Tally(graph.dense, criterion), batches(seed)
    expected = [torch.ones(WIDTH, dtype=torch.bool) for _ in graph.layers]
    for pair in seen:
        for read, operand in zip(graph.reads, pair, strict=True):
            tally.add(read, operand, 1)
            (number,) = read.layers
            maps = operand.view(4, WIDTH, PLACES)
            peaks = Peaks(maps.amax((0, 2)), maps.amin((0, 2)), maps.sum((0, 2)))
            expected[number] &= criterion.dead("relu", peaks)
    assert [flags.tolist() for flags in tally.detect().values()] == [flags.tolist() for flags in expected]


def test_a_neuron_that_was_seen_alive_is_not_looked_at_again(monkeypatch):
    graph = demp.trace(network(), (torch.zeros(1, 1, 3, 3),))
    tally, looks = Tally(graph.dense, Criterion()), []

    class Watched(Peaks):
        @classmethod
        def along(cls, values, axis, needs_total):
            looks.append(tuple(values.shape))
            return super().along(values, axis, needs_total)

    monkeypatch.setattr(tally_module, "Peaks", Watched)
    maps = torch.ones(2, WIDTH, 3, 3)
    maps[:, [2, 5]] = 0
    for read, operand in zip(graph.reads, (maps, maps.flatten(1)), strict=True):
        for values in (operand, operand, torch.ones_like(operand), operand):
            tally.add(read, values, 1)
    assert looks == [
        *((2, WIDTH, 3, 3), (2, 2, 3, 3), (2, 2, 3, 3)),
        *((2, WIDTH * PLACES), (2, 2 * PLACES), (2, 2 * PLACES)),
    ]


@pytest.mark.parametrize("written", [False, True])
def test_an_activation_with_two_readers_is_summed_once_unless_written_between(written, monkeypatch):
    graph = demp.trace(network(), (torch.zeros(1, 1, 3, 3),))
    first = graph.reads[0]
    tally, other = (Tally(graph.dense, Criterion(kind="saturated")) for _ in range(2))
    sums, along = [], Moments.along
    monkeypatch.setattr(Moments, "along", lambda values, axis: sums.append(axis) or along(values, axis))
    maps = torch.randn(4, WIDTH, 3, 3)
    tally.add(first, maps, 1)
    if written:
        maps.mul_(2)
    tally.add(first, maps, 1)
    assert len(sums) == 1 + written
    for part in (maps / 2 if written else maps, maps):
        other.add(first, part.clone(), 1)
    for mine, fresh in zip(*(list(t.state_dict()["moments"].values()) for t in (tally, other)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, fresh, strict=True))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda tally: pickle.loads(pickle.dumps(tally))])
def test_a_copy_goes_on_and_remembers_no_activation(again):
    graph = demp.trace(network(), (torch.zeros(1, 1, 3, 3),))
    tally, maps = Tally(graph.dense, Criterion(kind="saturated")), torch.randn(4, WIDTH, 3, 3)
    tally.add(graph.reads[0], maps, 1)
    other = again(tally)
    for one in (tally, other):
        one.add(graph.reads[0], maps + 1, 1)
    mine, theirs = (list(one.state_dict()["moments"].values()) for one in (tally, other))
    assert all(torch.equal(a, b) for pair in zip(mine, theirs, strict=True) for a, b in zip(*pair, strict=True))


def test_an_activation_of_inference_mode_has_no_version_and_is_summed_each_time():
    graph = demp.trace(network(), (torch.zeros(1, 1, 3, 3),))
    tally = Tally(graph.dense, Criterion(kind="saturated"))
    with torch.inference_mode():
        maps = torch.ones(4, WIDTH, 3, 3)
        tally.add(graph.reads[0], maps, 1)
        maps.mul_(3)
        tally.add(graph.reads[0], maps, 1)
    assert tally.state_dict()["moments"][f"{graph.reads[0].weight}#0"][1].tolist() == [2.0] * WIDTH
