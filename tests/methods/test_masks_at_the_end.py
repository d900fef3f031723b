"""What is left of a masked network: emptied neurons are gone for real, zeros stay in every file."""

from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import demp
from demp.methods import Method, MethodConfig, Requirements, View
from demp.methods.sparse import SparseMethod
from runs import IMAGE, PlainNet, ResidualNet, batch_at, build, examples, train

METHODS = ("magnitude", "saliency", "set", "rigl")


class Given(SparseMethod):
    """Masks that a test sets before the first step; nothing changes them."""

    Config = demp.methods.config_class("set")
    name = "given-masks"
    masks: ClassVar[dict[str, Tensor]] = {}

    def masks_due(self, step: int) -> bool:
        return False

    def initial_masks(self, view: View) -> dict[str, Tensor]:
        return dict(self.masks)


def ends(model: nn.Module, masks: dict[str, Tensor], **options) -> demp.Pruner:
    """A pruner with these masks, in which one step was taken."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    method = type("Given", (Given,), {"masks": masks})
    given = {"example_inputs": (examples(IMAGE),), "total_steps": 1} | options
    pruner = demp.Pruner(model, optimizer, method, method.Config(), **given)
    train(model, optimizer, IMAGE, range(1))
    return pruner


def full(model: nn.Module, *names: str) -> dict[str, Tensor]:
    return {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in names}


def test_neurons_that_nobody_reads_are_removed_and_nothing_else_changes():
    model = build(PlainNet)
    masks = full(model, "conv1.weight", "conv2.weight", "fc.weight", "head.weight")
    masks["head.weight"][:, 2] = False
    masks["fc.weight"][:, 4:8] = False  # all four positions of channel 1 of act2
    masks["conv2.weight"][:, 5] = False
    masks["conv2.weight"][1, 5] = True  # whom only channel 1 of act2 reads
    pruner = ends(model, masks)
    x = examples(IMAGE, seed=9)
    before = model.eval()(x).detach()
    report = pruner.finish()
    assert (report.removed, model.conv1.out_channels, model.conv2.out_channels, model.fc.out_features) == (3, 5, 4, 6)
    assert report.difference < 1e-12
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
    for key, mask in pruner.masks.kept.items():
        assert mask.shape == model.get_parameter(key).shape
        assert bool(mask.all())


def unfed(shift: float) -> tuple[PlainNet, dict[str, Tensor]]:
    """Nothing feeds channel 3 of act1: it says relu(shift) everywhere."""
    model = build(PlainNet)
    masks = full(model, "conv1.weight")
    masks["conv1.weight"][3] = False
    model.norm1.bias.data[3] = shift
    return model, masks


@pytest.mark.parametrize(("shift", "removed"), [(-1.0, 1), (1.0, 0)])
def test_who_is_fed_by_nobody_goes_if_it_says_nothing(shift: float, removed: int):
    model, masks = unfed(shift)
    report = ends(model, masks, batches=[examples(IMAGE, seed=3)]).finish()
    assert report.removed == removed
    assert report.difference is None or report.difference < 1e-12


def test_without_batches_nobody_is_watched_and_who_is_fed_by_nobody_stays():
    model, masks = unfed(-1.0)
    pruner = ends(model, masks)
    assert not any(m._forward_hooks for m in model.modules())
    report = pruner.finish()
    assert report.removed == 0
    assert not any("pass batches" in note for note in report.notes)


def test_a_dead_neuron_that_masks_left_alone_stays():
    model = build(PlainNet)
    model.norm1.bias.data[3] = -9.0
    report = ends(model, full(model, "conv1.weight"), batches=[examples(IMAGE, seed=3)]).finish()
    assert report.removed == 0


def test_a_small_constant_is_not_nothing():
    """GELU of -9 is almost zero, which a dead neuron of DemP may be; a mask method removes exact zeros only."""
    model = build(PlainNet, act=nn.GELU)
    masks = full(model, "conv1.weight")
    masks["conv1.weight"][3] = False
    model.norm1.bias.data[3] = -3.0
    assert ends(model, masks, batches=[examples(IMAGE, seed=3)]).finish().removed == 0


def test_a_compiled_model_needs_no_batches():
    model = build(ResidualNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    compiled = torch.compile(model, backend="eager")
    pruner = demp.methods.create("set", compiled, optimizer, example_inputs=(examples(IMAGE),), total_steps=4)
    assert pruner.masks.masked() > 0
    pruner.detach()


@pytest.mark.parametrize("name", METHODS)
def test_very_sparse_networks_lose_neurons_exactly(name: str):
    model = build(PlainNet)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    pruner = demp.methods.create(
        name, model, optimizer, example_inputs=(examples(IMAGE),), total_steps=20, weight_sparsity=0.96,
        distribution="uniform", batches=[batch_at(0, IMAGE)[0]],
    )  # fmt: skip
    train(model, optimizer, IMAGE, range(20))
    x = examples(IMAGE, seed=9)
    before = model.eval()(x).detach()
    report = pruner.finish()
    assert report.removed > 0
    assert report.difference < 1e-10
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-10)


def masked_model(name: str = "set") -> tuple[nn.Module, dict[str, Tensor]]:
    model = build(PlainNet, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    inputs = (examples(IMAGE, dtype=torch.float32),)
    pruner = demp.methods.create(name, model, optimizer, example_inputs=inputs, total_steps=8, weight_sparsity=0.9)
    train(model, optimizer, IMAGE, range(8))
    pruner.finish()
    return model.eval(), pruner.masks.state_dict()


def test_zeros_stay_when_a_network_is_saved_and_loaded(tmp_path):
    model, masks = masked_model()
    demp.save(model, tmp_path / "model")
    loaded = demp.load(lambda: build(PlainNet, dtype=torch.float32), tmp_path / "model").eval()
    assert sum(int((~mask).sum()) for mask in masks.values()) > 0
    for key, mask in masks.items():
        assert not bool(loaded.get_parameter(key)[~mask].any())
        assert torch.equal(loaded.get_parameter(key), model.get_parameter(key))
    x = examples(IMAGE, seed=9, dtype=torch.float32)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize(("to", "file"), [("safetensors", "model.safetensors"), ("state-dict", "model.pt")])
def test_zeros_stay_in_an_export(tmp_path, to: str, file: str):
    model, masks = masked_model("rigl")
    inputs = examples(IMAGE, n=4, dtype=torch.float32)
    demp.export(
        model, tmp_path / to, to=to, example_inputs=(inputs,), build=lambda: build(PlainNet, dtype=torch.float32)
    )
    path = tmp_path / to / file
    weights = load_file(path) if to == "safetensors" else torch.load(path, weights_only=True)
    for key, mask in masks.items():
        assert not bool(weights[key][~mask].any())
        assert torch.equal(weights[key], model.get_parameter(key))


def test_a_method_that_wants_batches_only_if_there_are_some_says_so():
    class Plain(Method):
        Config = MethodConfig
        name = "plain"

        def requirements(self) -> Requirements:
            return Requirements(collect="batches")

    for batches, judges in ((None, False), ([examples(IMAGE)], True)):
        model = build(PlainNet)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        pruner = demp.Pruner(
            model, optimizer, Plain, MethodConfig(), example_inputs=(examples(IMAGE),), total_steps=2, batches=batches
        )
        assert pruner._view.can_detect is judges
        pruner.detach()
