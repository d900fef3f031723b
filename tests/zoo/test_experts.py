"""Hidden neurons of experts: as transformers packs and multiplies them, and as bare parameters in batched products."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import demp
import exactly
from architectures import Made
from language_models import transformers
from nets import Forward
from thinning import covering

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8,
}  # fmt: skip
FAMILIES = {
    "Mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
    "GPT-OSS": (transformers.GptOssConfig, transformers.GptOssForCausalLM),
}


def language_model(family: str, how: str, **changes: int) -> Made:
    """A small one in double precision whose experts are multiplied in one of the ways of transformers."""
    torch.manual_seed(0)
    config, kind = FAMILIES[family]
    model = kind(config(**SMALL | changes)).double().eval()
    model.set_experts_implementation(how)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model, {"input_ids": torch.randint(0, 40, (2, 9)), "use_cache": False}


@pytest.mark.parametrize(("family", "how"), covering(FAMILIES, ("eager", "batched_mm")))
def test_hidden_neurons_of_experts_go(family, how):
    """Neuron j of all experts is one neuron, since they are packed in one parameter."""
    model, inputs = language_model(family, how)
    offered = exactly.offered(demp.trace(model, inputs))
    hidden = {name: neurons for name, neurons in offered.items() if not name.endswith("attention")}
    assert set(hidden.values()) == {12} and all("experts" in name for name in hidden)
    assert all(exactly.cut_twice(model, inputs))
    experts = model.model.layers[0].mlp.experts
    down, up = experts.down_proj.shape, experts.gate_up_proj.shape
    assert down[0] == up[0] == 3 and max(up[1:]) == max(16, 2 * min(down[1:])) and min(down[1:]) < 12


def test_grouped_products_are_refused_for_their_kernels():
    model, inputs = language_model("Mixtral", "grouped_mm", intermediate_size=16)
    graph = demp.trace(model.bfloat16(), inputs)
    assert list(exactly.offered(graph)) == ["model.layers.0.self_attn.attention"]
    assert "rows of whole 16 bytes" in exactly.reasons(graph)
    tokens, ends = torch.randn(4, 8).bfloat16(), torch.tensor([2, 4], dtype=torch.int32)
    torch._grouped_mm(tokens, torch.randn(2, 8, 8).bfloat16(), offs=ends)
    with pytest.raises(RuntimeError, match="multiple of 16 bytes"):
        torch._grouped_mm(tokens, torch.randn(2, 8, 7).bfloat16(), offs=ends)


def batched(s, x):
    h = F.relu(torch.bmm(x.expand(3, -1, -1), s.up) + s.shift[:, None])
    return (torch.bmm(h, s.down) * s.router(x).softmax(-1).t()[..., None]).sum(0)


def broadcast(s, x):
    h = F.gelu(torch.matmul(x, s.up) + s.shift[:, None])
    return (h @ s.down * s.router(x).softmax(-1).t()[..., None]).sum(0)


def picked(s, x):
    chosen = s.router(x).argmax(-1)
    h = F.silu(torch.bmm(x[:, None], s.up[chosen]) + s.shift[chosen][:, None])
    return torch.bmm(h, s.down[chosen])[:, 0]


def interleaved(s, x):
    both = torch.matmul(x, s.up) + s.shift[:, None]
    gate, value = both[..., ::2], both[..., 1::2]
    return ((gate * torch.sigmoid(1.7 * gate) * (value + 1)) @ s.down).sum(0)


@pytest.mark.parametrize("forward", [batched, broadcast, picked])
def test_experts_in_batched_products(forward):
    experts = {name: nn.Parameter(torch.randn(3, *size)) for name, size in
               {"up": (6, 8), "shift": (8,), "down": (8, 6)}.items()}  # fmt: skip
    model = Forward(forward, router=nn.Linear(6, 3), **experts).double()
    x = torch.randn(7, 6).double()
    assert set(exactly.offered(demp.trace(model, (x,))).values()) == {8}
    assert all(exactly.cut_twice(model, (x,)))


def test_interleaved_gates():
    """Every second output is a gate: neuron j is outputs 2j and 2j + 1."""
    parts = {"up": nn.Parameter(torch.randn(3, 6, 8)), "shift": nn.Parameter(torch.randn(3, 8))}
    model = Forward(interleaved, down=nn.Parameter(torch.randn(3, 4, 6)), **parts).double()
    x = torch.randn(7, 6).double()
    graph = demp.trace(model, (x,))
    assert list(exactly.offered(graph).values()) == [4]
    assert all(exactly.cut_twice(model, (x,))) and model.up.shape[2] == 2 * model.down.shape[1]


@pytest.mark.parametrize("start", [slice(0, None, 2), slice(1, 7, 2), slice(0, None, 3)])
def test_a_stride_that_leaves_neurons_out_keeps_them(start):
    """Of these parts nothing says that the ones left out go with them."""
    width = len(range(8)[start])
    parts = {"fc": nn.Linear(6, 8), "head": nn.Linear(width, 2)}
    model = Forward(lambda s, x: s.head(F.relu(s.fc(x))[:, start]), **parts).double()
    graph = demp.trace(model, (torch.randn(7, 6).double(),))
    assert not exactly.offered(graph) and "shrink unequally" in exactly.reasons(graph)
