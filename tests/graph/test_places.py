"""Planned calls are known by where they stand in the code, whatever else runs before, beside and around them."""

import copy
import functools
import operator
import sys
import threading

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import comparing
import demp
import killing
from shim import install_torchvision_shim

install_torchvision_shim()

DEAD = {"block.relu": [1, 2, 6]}


class Block(nn.Module):
    """Halves that a cut leaves unequal, by a helper, in a part that may be checkpointed, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.one, self.down = nn.Linear(6, 8), nn.Linear(4, 3), nn.Linear(7, 6)
        self.run = operator.call

    def body(self, x: Tensor) -> Tensor:
        a, b = torch.relu(self.up(x)).chunk(2, 1)
        return self.down(torch.cat([torch.relu(self.one(a)), b], 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.run(self.body, x)) + x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x))


def cut_pair() -> tuple[nn.Module, nn.Module, Tensor]:
    """A network that was cut, its dense twin, and inputs."""
    torch.manual_seed(0)
    model, x = Net().double().eval(), torch.randn(16, 6).double()
    graph = demp.trace(model, (x,))
    killing.kill(model, graph, DEAD)
    dense = copy.deepcopy(model)
    assert demp.cut(model, DEAD, example_inputs=(x,), graph=graph).removed == 3
    return model, dense, x


def test_a_part_that_is_checkpointed_later_is_an_error():
    model, dense, x = cut_pair()
    model.block.run = dense.block.run = functools.partial(checkpoint, use_reentrant=False)
    with torch.no_grad():
        assert comparing.gap(comparing.outputs(dense, (x,)), comparing.outputs(model, (x,))) < 1e-12
    with pytest.raises(RuntimeError, match=r"a call \(split\) of Block that a cut planned runs inside .*checkpoint"):
        model(x)


def test_the_whole_module_may_be_checkpointed():
    model, dense, x = cut_pair()
    found = []
    for one in (dense, model):
        given = x.clone().requires_grad_()
        out = one.head(checkpoint(one.block, given, use_reentrant=False))
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), given)])
    assert comparing.gap(*found) < 1e-12


def test_many_forwards_later_the_calls_stand_where_they_stood():
    """Python takes other instructions for a call that it has seen often."""
    model, dense, x = cut_pair()
    for _ in range(64):
        model.train(), dense.train()
        torch.testing.assert_close(model(x), dense(x))


def test_a_hook_may_run_another_network_that_was_cut():
    model, _, x = cut_pair()
    other = cut_pair()[0]
    model.block.one.register_forward_hook(lambda module, given, out: (other(x), None)[1])
    assert torch.equal(model(x), cut_pair()[0](x))


def test_threads_do_not_meet():
    model, _, x = cut_pair()
    wanted, faults = model(x), []

    def work() -> None:
        for _ in range(60):
            try:
                if not torch.equal(model(x), wanted):
                    faults.append("other outputs")
            except Exception as error:  # whatever it is, the test shows it
                faults.append(str(error))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert faults == []


def test_jacobians_of_a_joined_network():
    torch.manual_seed(0)
    model = nn.Sequential(Net(), nn.Tanh()).double().eval()
    x = torch.randn(5, 6).double()
    graph = demp.trace(model, (x,))
    dead = {"0.block.relu": [1, 2, 6]}
    killing.kill(model, graph, dead)
    dense = copy.deepcopy(model)
    demp.cut(model, dead, example_inputs=(x,), graph=graph)
    for made in (torch.func.jacrev, lambda one: lambda y: torch.func.jvp(one, (y,), (y,))[1]):
        torch.testing.assert_close(made(model)(x), made(dense)(x))


def test_a_cut_in_inference_mode_leaves_ordinary_state():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(16, 6)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    graph = demp.trace(model, (x,))
    killing.kill(model, graph, {"1": [1, 2]})
    with torch.inference_mode():
        demp.cut(model, {"1": [1, 2]}, example_inputs=(x,), graph=graph, optimizer=optimizer)
    model(x).sum().backward()
    optimizer.step()
    assert not any(value.is_inference() for state in optimizer.state.values() for value in state.values())


def test_whisper_generates_with_and_without_a_cache_after_a_cut():
    """With a cache its attention to the encoder leaves views out."""
    torch.manual_seed(0)
    options = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    numbers = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 39, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(
        vocab_size=40, num_mel_bins=8, max_source_positions=10, max_target_positions=16, **options, **heads, **numbers
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    inputs = {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": torch.tensor([[1, 5, 6], [1, 7, 8]])}
    graph = demp.trace(model, inputs)
    layer = next(name for name in graph.index if name.startswith("model.decoder") and "activation" in name)
    killing.kill(model, graph, {layer: [1]})
    ways = [{"use_cache": False}, {"use_cache": True}, {"num_beams": 2}]
    given = inputs["input_features"]
    wanted = [model.generate(given, max_new_tokens=6, do_sample=False, **way) for way in ways]
    assert demp.cut(model, {layer: [1]}, example_inputs=inputs, graph=graph).removed == 1
    for way, tokens in zip(ways, wanted, strict=True):
        assert torch.equal(model.generate(given, max_new_tokens=6, do_sample=False, **way), tokens)
