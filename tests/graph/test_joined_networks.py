"""Networks with joins do what they did, whatever runs, copies, saves or cuts them."""

import copy
import pickle
import random
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import comparing
import demp
import killing
import nets
from demp.graph import sums
from demp.graph.joins import JoinPlan, model_joins, set_joins
from demp.train.models import build
from residuals import Block, cut_apart, network
from thinning import mostly_slow


def difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return comparing.gap([a.detach()], [b.detach()])


@pytest.fixture(params=mostly_slow(("slice", "index"), quick=("slice",)))
def cut_network(request, monkeypatch) -> tuple[nn.Module, tuple[Tensor, ...]]:
    monkeypatch.setattr(sums, "MAX_RUNS", 8 if request.param == "slice" else -1)
    model, inputs = network()
    cut_apart(model, inputs)
    kinds = {plan.kind for sums in model_joins(model).values() for plan in sums.values()}
    assert kinds == {request.param}
    return model.eval(), inputs


def test_compiled_whole(cut_network):
    model, inputs = cut_network
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert difference(model(*inputs), compiled(*inputs)) < 1e-12
    model.train()
    grads = []
    for run in (model, compiled):
        model.zero_grad()
        run(*inputs).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert comparing.gap(*grads) < 1e-10


def test_exported_with_any_batch(cut_network):
    model, inputs = cut_network
    batch = torch.export.Dim("batch")
    for strict in (False, True):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "While compiling, we found certain side effects")  # the mode counts
            exported = torch.export.export(model, inputs, dynamic_shapes=({0: batch},), strict=strict)
        program = exported.module()
        for size in (1, 2, 5):
            x = torch.randn(size, 3, 6, 6, dtype=torch.float64)
            assert difference(model(x), program(x)) < 1e-12


def test_checkpointed(cut_network):
    model, inputs = cut_network
    for reentrant in (False, True):
        found = []
        for run in (model, partial(checkpoint, model, use_reentrant=reentrant)):
            x = inputs[0].clone().requires_grad_()
            run(x).square().sum().backward()
            found.append(x.grad)
        assert torch.equal(*found)


def test_channels_last_and_autocast(cut_network):
    model, inputs = cut_network
    wanted = model(*inputs)
    model.to(memory_format=torch.channels_last)
    (x,) = inputs
    assert difference(wanted, model(x.contiguous(memory_format=torch.channels_last))) < 1e-12
    model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x.float())
    assert rough.dtype == torch.bfloat16 and difference(wanted, rough) < 0.1 * float(wanted.detach().abs().max())


def test_copied_and_pickled(cut_network):
    model, inputs = cut_network
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(*inputs), model(*inputs)) and model_joins(other) == model_joins(model)
        assert isinstance(other[2], Block) and type(other[2]).__name__ == "Block"
        killing.kill(other, demp.trace(other, inputs), {"1": [0]})  # a copy goes its own way
        assert model_joins(other) == model_joins(model)


def test_a_module_s_own_way_to_pickle_is_kept():
    class Careful(Block):
        def __getstate__(self):
            return {name: value for name, value in self.__dict__.items() if name != "handle"}

    block = Careful(4, 3)
    block.handle = lambda: None
    set_joins(block, {0: JoinPlan(0, 1, (4, 4), ((1, 0, 3),))})
    other = copy.deepcopy(block)
    assert not hasattr(other, "handle") and model_joins(other) == model_joins(block)


def test_saved_and_loaded(cut_network, tmp_path):
    model, inputs = cut_network
    demp.save(model, tmp_path / "saved", example_inputs=inputs)
    again = demp.load(lambda: network()[0], tmp_path / "saved")
    assert torch.equal(again(*inputs), model(*inputs)) and model_joins(again) == model_joins(model)


def test_traced_again_with_the_same_costs(cut_network):
    model, inputs = cut_network
    graph = demp.trace(model, inputs)
    assert len(graph.joins) == 3 and demp.cost(model, inputs).neurons == graph.dense.neurons
    cut_apart(model, inputs, seed=5)


def test_hooks_and_names_stay(cut_network):
    model, inputs = cut_network
    seen = []
    model[2].register_forward_hook(lambda module, args, out: seen.append(type(module).__name__))
    model(*inputs)
    assert seen == ["Block"] and set(model.state_dict()) == set(network()[0].state_dict())


def test_plain_again(cut_network):
    model, _ = cut_network
    set_joins(model[2], {})
    assert type(model[2]) is Block and "demp_joins" not in vars(model[2])
    assert not any(name.startswith("2.demp") for name, _ in model.named_buffers())


def test_averaged_copies_follow():
    model, inputs = network()
    average = torch.optim.swa_utils.AveragedModel(model)
    graph = demp.trace(model, inputs)
    dead = killing.some_dead(graph, 0.5, random.Random(0))
    for each in (model, average.module):
        killing.kill(each, graph, dead)
    wanted = comparing.outputs(average, inputs)
    demp.cut(model, dead, example_inputs=inputs, graph=graph, copies=[average])
    assert comparing.gap(wanted, comparing.outputs(average, inputs)) < 1e-10
    average.update_parameters(model)


def test_a_cut_that_fails_leaves_no_join():
    model, inputs = network()
    wanted = comparing.outputs(model, inputs)
    with pytest.raises(demp.CutError, match="rolled back"):
        demp.cut(model, {"2.act#2": [0, 3]}, example_inputs=inputs)
    assert type(model[2]) is Block and model_joins(model) == {}
    assert comparing.gap(wanted, comparing.outputs(model, inputs)) == 0


def test_live_neurons_are_silenced_at_the_sum_too():
    """A removal that is not exact is compared with the network in which the neurons are silent everywhere."""
    model, inputs = network()
    report = demp.cut(model, {"1": [0, 2], "3.act#2": [1]}, example_inputs=inputs, exact=False)
    assert report.removed == 3 and report.difference < 1e-10 < report.drift


@pytest.mark.parametrize("name", mostly_slow(("resnet18", "resnet50"), quick=("resnet18",)))
def test_the_paper_s_networks(name):
    options = {"cifar_stem": True} if name == "resnet50" else {}
    model = nets.settle(build(name, num_classes=5, width=1 / 8, **options))
    inputs = (torch.randn(2, 3, 16, 16, dtype=torch.float64),)
    graph = demp.trace(model, inputs)
    assert len(graph.joins) == {"resnet18": 5, "resnet50": 12}[name]
    for seed in range(2):
        cut_apart(model, inputs, seed)
    kinds = [plan.kind for sums in model_joins(model).values() for plan in sums.values()]
    assert "slice" in kinds
