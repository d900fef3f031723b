"""Moments at which a model must not be cut, and moments that only look like it."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import comparing
import demp
import killing
import nets
from demp.surgery import guards
from demp.surgery.guards import pending_backward
from nets import Forward

X = torch.randn(5, 4)


def network(bias: bool = True) -> nn.Sequential:
    model = nets.mlp(4, 6, 3, bias=bias)
    killing.kill(model, demp.trace(model, (X,)), {"1": [0, 1]})
    return model


def cut(model: nn.Module) -> int:
    layer = demp.trace(model, (X,)).layers[0].name
    return demp.cut(model, {layer: [0, 1]}, example_inputs=(X,)).removed


def test_a_cut_leaves_an_open_autocast_region_and_its_casts():
    model = network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(X)
        assert cut(model) == 2 and torch.is_autocast_enabled("cpu")
        gc.collect()
        assert torch.equal(model(X), copy.deepcopy(model)(X))  # the casts that the region kept are gone


def test_gradients_that_no_step_has_used():
    model = network()
    model(X).sum().backward()
    with pytest.raises(demp.CutError, match="holds a gradient: the model is inside an accumulation window"):
        cut(model)
    model.zero_grad(set_to_none=False)
    assert cut(model) == 2
    assert model[0].weight.grad.shape == model[0].weight.shape


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_forward_that_waits_for_its_backward(bias):
    model = network(bias)
    before = comparing.state(model)
    loss = model(X).square().sum()
    with pytest.raises(demp.CutError, match="still waiting for its backward"):
        cut(model)
    assert comparing.same_state(before, model)
    loss.backward()
    model.zero_grad()
    assert cut(model) == 2


@pytest.mark.parametrize("verify", [True, False])
def test_tensors_that_cannot_shrink_in_place(verify):
    model, average = network(), dict(network().state_dict())
    with torch.inference_mode():
        average["2.weight"] = average["2.weight"].clone()
    before = comparing.state(model)
    with pytest.raises(demp.CutError, match="2.weight is a tensor made in inference mode and cannot shrink in place"):
        demp.cut(model, {"1": [0, 1]}, example_inputs=(X,), copies=[average], verify=verify)
    average["2.weight"] = torch.zeros(3, 6).to_sparse()
    with pytest.raises(demp.CutError, match=r"2.weight is a tensor of layout torch.sparse_coo and cannot shrink"):
        demp.cut(model, {"1": [0, 1]}, example_inputs=(X,), copies=[average], verify=verify)
    assert comparing.same_state(before, model) and average["0.weight"].shape == (6, 4)


def waiting(model: nn.Module, loss: torch.Tensor) -> bool:
    """Is a cut refused while ``loss`` is alive?"""
    try:
        demp.cut(model, {}, example_inputs=(X,))
    except demp.CutError:
        assert loss is not None
        return True
    return False


def test_a_dropped_graph_does_not_wait():
    model = network()
    model(X)
    assert cut(model) == 2


def test_a_graph_kept_for_another_backward_waits():
    model = network()
    loss = model(X).square().sum()
    loss.backward(retain_graph=True)
    model.zero_grad()
    assert waiting(model, loss)


def test_a_graph_in_a_container_waits():
    model = network()
    kept = {"outputs": [model(X)]}
    assert waiting(model, kept["outputs"][0])


def test_the_graph_of_another_model_does_not_wait():
    model, other = network(), network()
    loss = other(X).sum()
    assert not waiting(model, loss)


def test_no_grad_does_not_wait():
    model = network()
    with torch.no_grad():
        out = model(X)
    assert not waiting(model, out)


def test_checkpointed_graphs_wait_and_are_not_run_again():
    runs = []

    def block(s, y):
        runs.append(1)
        return F.relu(s.fc(y))

    model = Forward(
        lambda s, x: s.head(checkpoint(block, s, x, use_reentrant=False)),
        fc=nn.Linear(4, 6),
        head=nn.Linear(6, 3, bias=False),
    )
    loss = model(X).sum()
    assert len(runs) == 1 and waiting(model, loss) and len(runs) == 1
    loss.backward()
    assert model.fc.weight.grad is not None


def test_custom_functions_wait():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x @ weight.t()

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            return grad @ weight, grad.t() @ x

    model = Forward(lambda s, x: Square.apply(x, s.fc.weight), fc=nn.Linear(4, 3, bias=False))
    loss = model(X).sum()
    assert waiting(model, loss)
    loss.backward()
    model.zero_grad()
    assert not waiting(model, loss)


def test_a_bare_bias_waits():
    model = Forward(lambda s, x: F.relu(x + s.shift), shift=nn.Parameter(torch.ones(4)))
    assert waiting(model, model(X))


def test_an_outdated_graph_does_not_wait():
    """An optimizer has stepped: this graph can never run backward again."""
    model = network()
    out = model[2](model[1](model[0](X)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
    assert not pending_backward(model[2].parameters())


def test_nothing_is_searched_once_the_loss_is_gone(monkeypatch):
    searched = []
    monkeypatch.setattr(guards.gc, "get_objects", lambda: searched.append(1) or [])
    model = network()
    loss = model(X).sum()
    loss.backward()
    assert not pending_backward(model.parameters()) and searched
    del loss
    searched.clear()
    assert not pending_backward(model.parameters()) and not searched
    held = model[0].weight.data_ptr, model[0].weight.view(-1)  # a view may carry a graph
    assert not pending_backward(model.parameters()) and searched
    del held


def stepped(model: nn.Module) -> None:
    """An optimizer's step, on another forward."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("kept", ["output", "loss", "retained", "list"])
def test_a_graph_is_stale_once_a_saved_weight_has_stepped(kept):
    """Its first layer saved its input alone; behind the whole, torch refuses the backward all the same."""
    model = network()
    out = model(X)
    loss = out.square().sum()
    if kept == "retained":
        loss.backward(retain_graph=True)
        model.zero_grad()
    held = {"output": out, "loss": loss, "retained": loss, "list": [loss]}[kept]
    del out, loss
    assert pending_backward(model.parameters())
    stepped(model)
    assert not pending_backward(model.parameters())
    assert cut(model) == 2
    last = held[0] if kept == "list" else held
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        last.sum().backward()


def test_a_hidden_activation_that_is_kept_waits_on():
    """Its own backward needs no weight that has stepped: torch would run it."""
    model = network()
    hidden = model[1](model[0](X))
    out = model[2](hidden)
    stepped(model)
    held = guards.held_forward(model.named_parameters())
    assert held == "a tensor made by ReluBackward0, computed with 0.weight" and out is not None
    with pytest.raises(demp.CutError, match=r"still waiting for its backward \(a tensor made by ReluBackward0"):
        cut(model)
    hidden.sum().backward()
    model.zero_grad()
    del hidden
    assert cut(model) == 2
