"""What a cut leaves alone: objects, hooks, modes, formats, ties."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import comparing
import demp
import killing
import nets
from nets import Forward

X = torch.randn(2, 3, 6, 6)


def network() -> nn.Sequential:
    return nn.Sequential(
        *[nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()],
        *[nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.ReLU()],
        *[nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)],
    )


DEAD = {"2": [0, 4], "5": [0, 4], "7": [1, 2]}


def cut(model: nn.Module, inputs=(X,), dead=None) -> demp.CutReport:
    dead = dead or DEAD
    killing.kill(model, demp.trace(model, inputs), dead)
    return demp.cut(model, dead, example_inputs=inputs)


def test_objects_stay():
    model = network()
    modules = [id(module) for module in model.modules()]
    tensors = {name: id(tensor) for name, tensor in comparing.tensors_of(model).items()}
    cut(model)
    assert modules == [id(module) for module in model.modules()]
    assert tensors == {name: id(tensor) for name, tensor in comparing.tensors_of(model).items()}
    assert all(isinstance(p, nn.Parameter) and p.is_leaf and p.grad_fn is None for p in model.parameters())


def test_modules_say_their_new_sizes():
    model = network()
    cut(model)
    lines = repr(model).replace(" ", "")
    assert (
        "Conv2d(3,4,kernel_size=(3,3)" in lines
        and "Conv2d(4,4,kernel_size=(3,3),stride=(1,1),padding=(1,1),groups=4)" in lines
    )
    assert "BatchNorm2d(4," in lines and "Linear(in_features=72,out_features=3" in lines


def test_hooks_of_modules_and_tensors_still_fire():
    model = network()
    seen = []
    model[2].register_forward_hook(lambda m, a, out: seen.append(("forward", out.shape[1])))
    model[0].weight.register_hook(lambda grad: seen.append(("tensor", grad.shape[0])))
    model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(("after", p.grad.shape[0])))
    model(X).sum().backward()
    assert seen == [("forward", 6), ("tensor", 6), ("after", 6)]
    model.zero_grad()
    cut(model)
    seen.clear()
    model(X).sum().backward()
    assert seen == [("forward", 4), ("tensor", 4), ("after", 4)]


def test_requires_grad_and_modes_stay():
    model = network().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    cut(model)
    assert [module.training for module in model] == [index != 1 for index in range(len(model))] and model.training
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    model, inputs = network().to(dtype), (X.to(dtype),)
    report = cut(model, inputs)
    assert report.removed == 6 and {p.dtype for p in model.parameters()} == {dtype}
    assert model[1].num_batches_tracked.dtype == torch.long


def test_channels_last():
    model, inputs = network().to(memory_format=torch.channels_last), (X.to(memory_format=torch.channels_last),)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    killing.kill(model, demp.trace(model, inputs), DEAD)
    model(*inputs).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    demp.cut(model, DEAD, example_inputs=inputs, optimizer=optimizer)
    assert model[0].weight.shape == (4, 3, 3, 3)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last) and not model[0].weight.is_contiguous()
    momentum = optimizer.state[model[0].weight]["momentum_buffer"]
    assert momentum.is_contiguous(memory_format=torch.channels_last) and momentum.shape == (4, 3, 3, 3)
    assert model[6].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[:3](*inputs).is_contiguous(memory_format=torch.channels_last)


def test_channels_last_3d():
    model = nn.Sequential(nn.Conv3d(2, 5, 3), nn.ReLU(), nn.Conv3d(5, 2, 1), nn.Flatten()).to(
        memory_format=torch.channels_last_3d
    )
    cut(model, (torch.randn(2, 2, 4, 4, 4),), {"1": [1, 2]})
    assert model[0].weight.shape == (3, 2, 3, 3, 3)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.up, self.down = nn.Embedding(7, 4), nn.Linear(4, 8), nn.Linear(8, 4, bias=False)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.table.weight
            self.again = self.up

        def forward(self, tokens):
            return self.head(self.down(F.relu(self.up(self.table(tokens)))))

    model, inputs = nets.settle(Tied()), (torch.randint(0, 7, (2, 3)),)
    before = comparing.outputs(model, inputs)
    cut(model, inputs, {"relu": [2, 3]})
    assert model.head.weight is model.table.weight and model.again is model.up
    assert model.up.weight.shape == (6, 4) and model.table.weight.shape == (7, 4)
    cut(model, inputs, {"relu": [0]})
    assert before[0].shape == comparing.outputs(model, inputs)[0].shape and model.again.weight.shape == (5, 4)


def test_weights_tied_within_a_neuron():
    """Encoder and decoder are one matrix: its rows go once."""
    model = Forward(lambda s, x: F.linear(F.relu(s.fc(x)), s.fc.weight.t()), fc=nn.Linear(4, 6))
    inputs = (torch.randn(3, 4, dtype=torch.float64),)
    nets.settle(model)
    killing.kill(model, demp.trace(model, inputs), {"relu": [0, 5]})
    before = comparing.outputs(model, inputs)
    demp.cut(model, {"relu": [0, 5]}, example_inputs=inputs)
    assert model.fc.weight.shape == (4, 4) and comparing.gap(before, comparing.outputs(model, inputs)) < 1e-12


def test_parameters_that_are_parts_of_one_vector():
    model, inputs = nets.mlp(4, 8, 8, 8, 3), (torch.randn(5, 4),)
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(vector, model.parameters())
    dead = {"1": [0, 1], "3": [2], "5": [7]}
    killing.kill(model, demp.trace(model, inputs), dead)
    alive = demp.alive(model, [inputs])
    assert all(not alive[name][index] for name, indices in dead.items() for index in indices)
    before = comparing.outputs(model, inputs)
    assert demp.cut(model, dead, example_inputs=inputs).removed == 4
    assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-5


def test_gradients_that_are_zero_shrink_along():
    model = network()
    model(X).sum().backward()
    model.zero_grad(set_to_none=False)
    grads = {name: id(p.grad) for name, p in model.named_parameters()}
    cut(model)
    assert all(p.grad.shape == p.shape for p in model.parameters())
    assert grads.keys() == dict(model.named_parameters()).keys()


def test_values_of_what_stays_are_untouched():
    model = network()
    killing.kill(model, demp.trace(model, (X,)), DEAD)
    before = comparing.state(model)
    demp.cut(model, DEAD, example_inputs=(X,))
    now, kept = comparing.tensors_of(model), demp.surgery.record_of(model).kept
    for name, tensor in before.items():
        for (owner, axis), indices in kept.items():
            tensor = tensor.index_select(axis, indices) if owner == name else tensor
        assert torch.equal(tensor, now[name])


def test_a_cut_model_can_be_copied_moved_and_serialised():
    model = network()
    cut(model)
    twin = copy.deepcopy(model)
    assert comparing.gap(comparing.outputs(model, (X,)), comparing.outputs(twin, (X,))) == 0.0
    assert demp.surgery.record_of(twin).kept.keys() == demp.surgery.record_of(model).kept.keys()
    fresh = network()
    with pytest.raises(RuntimeError, match="size mismatch"):
        fresh.load_state_dict(model.state_dict())
    twin.load_state_dict(model.state_dict())
    model.double().half().float()


def test_training_goes_on_in_the_same_loop():
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clipped = list(model.parameters())
    for step in range(4):
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(clipped, 1.0)
        optimizer.step()
        if step == 1:
            optimizer.zero_grad()
            loss_before = loss.item()
            killing.kill(model, demp.trace(model, (X,)), DEAD)
            demp.cut(model, DEAD, example_inputs=(X,), optimizer=optimizer)
    assert loss.item() != loss_before and all(p.grad.shape == p.shape for p in clipped)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_cut_convolution_has_the_strides_of_a_new_one(layout, kernel):
    """Also where a kernel of one pixel fits both layouts: DistributedDataParallel compares strides."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, kernel))
    model = model.to(memory_format=layout)
    with torch.no_grad():
        model[0].bias[:3] = -100.0
    demp.cut(model, {"1": [0, 1, 2]}, example_inputs=(torch.randn(2, 3, 6, 6),))
    for at, new in ((0, nn.Conv2d(3, 5, 3)), (2, nn.Conv2d(5, 4, kernel))):
        assert model[at].weight.stride() == new.to(memory_format=layout).weight.stride()
