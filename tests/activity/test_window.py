"""The passive window against a literal recomputation over the same training forwards."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import demp
from demp.activity import Criterion, Window
from runs import IMAGE, VECTOR, Mlp, PlainNet, build, examples, hooks_on, kill, kill_linear, loss_of, same, train


def injured(seed: int = 0) -> PlainNet:
    model = build(PlainNet, seed=seed)
    kill(model.norm1, [1])
    kill(model.norm2, [2, 3])
    kill_linear(model.fc, [4])
    model.norm1.bias.data[0] = -1.5  # speaks now and then
    return model


def open_window(model: nn.Module, shape: tuple[int, ...] = IMAGE, criterion: str = "auto") -> Window:
    graph = demp.trace(model, (examples(shape),))
    window = Window(model, graph, Criterion(kind=criterion))
    window.open(graph.dense)
    return window


WIDTHS = {"conv2": 6, "fc": 5, "head": 7}
LAYERS = {"conv2": "act1", "fc": "act2", "head": "act3"}
"""Reader -> the layer that it reads."""


class Recorder:
    """Per layer of a PlainNet, whether every value that its reader received was zero, in every forward."""

    def __init__(self, model: PlainNet) -> None:
        self.dead = {LAYERS[r]: torch.ones(w, dtype=torch.bool) for r, w in WIDTHS.items()}
        for reader in WIDTHS:
            model.get_submodule(reader).register_forward_pre_hook(lambda m, args, r=reader: self.look(r, args[0]))

    def look(self, reader: str, value: Tensor) -> None:
        parts = value.detach().reshape(len(value), WIDTHS[reader], -1)
        self.dead[LAYERS[reader]] &= (parts == 0).all(2).all(0)


@pytest.mark.parametrize("seed", range(3))
def test_the_window_is_the_literal_recomputation_over_the_same_forwards(seed: int):
    model = injured(seed)
    recorder = Recorder(model)
    window = open_window(model)
    recorder.dead = {name: torch.ones_like(flags) for name, flags in recorder.dead.items()}  # tracing ran the model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    train(model, optimizer, IMAGE, range(6))
    detection = window.detect()
    assert (detection.batches, detection.examples) == (6, 96)
    assert all(torch.equal(detection.dead[name], recorder.dead[name]) for name in recorder.dead)
    assert bool(detection.dead["act1"][1])
    assert bool(detection.dead["act3"][4])


def test_batch_statistics_count_in_a_window():
    """In training mode the norm uses the batch's own statistics; the probe would use running ones."""
    model = build(PlainNet)
    model.norm1.running_mean[:] = 1e3  # evaluation mode would find all of layer 1 dead
    window = open_window(model)
    model(examples(IMAGE))
    assert not bool(window.detect().dead["act1"].all())
    assert not bool(demp.alive(model, [examples(IMAGE)])["act1"].any())


def test_evaluation_forwards_do_not_count():
    model = injured()
    window = open_window(model)
    model.eval()
    model(examples(IMAGE))
    assert window.batches == 0
    assert not any(bool(flags.any()) for flags in window.detect().dead.values())
    model.train()
    model(examples(IMAGE))
    assert window.detect().batches == 1


def test_opening_again_forgets_and_closing_leaves_no_hooks():
    model = injured()
    window = open_window(model)
    model(examples(IMAGE))
    window.open(demp.trace(model, (examples(IMAGE),)).dense)
    assert window.batches == 0
    assert hooks_on(model) > 0
    window.close()
    assert hooks_on(model) == 0
    assert not window.is_open
    assert window.detect().batches == 0


def test_training_is_the_same_with_and_without_a_window():
    watched, plain = injured(), injured()
    open_window(watched)
    for model in (watched, plain):
        train(model, torch.optim.Adam(model.parameters(), lr=0.01), IMAGE, range(4))
    assert same(watched, plain)


class BareReader(nn.Module):
    """The second layer is read by a parameter of the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 5)
        self.act1 = nn.ReLU()
        self.fc2 = nn.Linear(5, 4)
        self.act2 = nn.ReLU()
        self.out = nn.Parameter(torch.ones(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.act2(self.fc2(self.act1(self.fc1(x)))), self.out)


def test_layers_that_hooks_cannot_watch_are_named_and_alive():
    model = build(BareReader)
    kill_linear(model.fc1, [0])
    kill_linear(model.fc2, [0])
    window = open_window(model, VECTOR)
    assert window.unwatched == ("act2",)
    model(examples(VECTOR))
    assert bool(window.detect().dead["act1"][0])
    assert not bool(window.detect().dead["act2"].any())
    assert not demp.alive(model, [examples(VECTOR)])["act2"][0].item()  # the probe can


def test_a_reader_that_did_not_run_leaves_its_layer_alive():
    class Switch(BareReader):
        skip = False

        def forward(self, x: Tensor) -> Tensor:
            h = self.act1(self.fc1(x))
            return h.sum(1, keepdim=True) if self.skip else self.fc2(h)

    model = build(Switch)
    kill_linear(model.fc1, [0])
    window = open_window(model, VECTOR)
    model.skip = True
    model(examples(VECTOR))
    assert not bool(window.detect().dead["act1"].any())


def test_a_layer_of_which_one_reader_did_not_run_is_alive_too():
    class TwoReaders(BareReader):
        both = True

        def forward(self, x: Tensor) -> Tensor:
            h = self.act1(self.fc1(x))
            return self.fc2(h) + (self.fc3(h) if self.both else 0)

    model = build(BareReader)
    model.__class__ = TwoReaders
    model.fc3 = copy.deepcopy(model.fc2)
    kill_linear(model.fc1, [0])
    window = open_window(model, VECTOR)
    model(examples(VECTOR))
    assert bool(window.detect().dead["act1"][0])
    window.open(demp.trace(model, (examples(VECTOR),)).dense)
    model.both = False
    model(examples(VECTOR))
    assert not bool(window.detect().dead["act1"].any())


def test_a_forward_in_evaluation_mode_inside_a_training_forward_disturbs_nothing():
    class Curious(PlainNet):
        """Looks at itself in the middle of its forward, as a monitor's first reading does."""

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                demp.trace(self, (examples(IMAGE),))
            return super().forward(x)

    model = build(Curious)
    kill(model.norm1, [1])
    window = open_window(model)
    model(examples(IMAGE))
    assert bool(window.detect().dead["act1"][1])


def test_one_example_without_a_batch_axis():
    model = build(Mlp)
    kill_linear(model.fc1, [3])
    window = open_window(model, VECTOR)
    model(examples(VECTOR)[0])
    assert bool(window.detect().dead["act1"][3])


class Checkpointed(PlainNet):
    """Activations are recomputed in the backward."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        front = nn.Sequential(self.conv1, self.norm1, self.act1, self.conv2, self.norm2, self.act2)
        x = checkpoint(front, x.requires_grad_(), use_reentrant=self.reentrant)
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(self.act3(self.fc(x)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_forwards_count_once(reentrant: bool):
    detections = []
    for kind in (PlainNet, Checkpointed):
        model = build(kind)
        kill(model.norm1, [1])
        if kind is Checkpointed:
            model.reentrant = reentrant
        window = open_window(model)
        for step in range(3):
            loss_of(model, step, IMAGE).backward()
        detections.append(window.detect())
    assert detections[0].batches == detections[1].batches == 3
    assert all(torch.equal(detections[1].dead[name], flags) for name, flags in detections[0].dead.items())


def test_a_shared_reader_is_watched_at_each_of_its_uses():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 4), nn.Linear(6, 4)
            self.act1, self.act2 = nn.ReLU(), nn.ReLU()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act1(self.fc1(x))) + self.head(self.act2(self.fc2(x)))

    model = build(Shared)
    kill_linear(model.fc1, [0, 1])
    kill_linear(model.fc2, [1, 2])
    window = open_window(model, VECTOR)
    model(examples(VECTOR))
    dead = window.detect().dead
    alive = demp.alive(model, [examples(VECTOR)])
    assert all(torch.equal(~alive[name], dead[name]) for name in dead)
    assert (bool(dead["act1"][0]), bool(dead["act2"][0])) == (True, False)
    assert (bool(dead["act1"][1]), bool(dead["act2"][1])) == (True, True)


def test_after_a_cut_the_window_goes_on_in_dense_numbering():
    model = injured()
    graph = demp.trace(model, (examples(IMAGE),))
    gone = graph.none_removed()
    gone[graph.layer("act1").classes[1]] = True
    demp.cut(model, {"act1": [1]}, example_inputs=(examples(IMAGE),), exact=False)
    kill(model.norm1, [2])  # at position 2 now: neuron 3
    window = Window(model, graph, Criterion())
    window.open(graph.at(gone))
    model(examples(IMAGE))
    assert window.detect().dead["act1"].nonzero().flatten().tolist() == [3]


def test_a_saved_window_goes_on():
    model = injured()
    window = open_window(model)
    for s in range(2):
        model(examples(IMAGE, seed=s))
    state = copy.deepcopy(window.state_dict())
    assert state is not None
    twin = copy.deepcopy(model)
    for module in twin.modules():
        module._forward_pre_hooks.clear()
        module._forward_pre_hooks_with_kwargs.clear()
    other = open_window(twin)
    other.load_state_dict(state)
    for net in (model, twin):
        net(examples(IMAGE, seed=7))
    first, second = window.detect(), other.detect()
    assert (first.batches, first.examples) == (second.batches, second.examples) == (3, 24)
    assert all(torch.equal(first.dead[name], second.dead[name]) for name in first.dead)
    window.close()
    assert window.state_dict() is None
