"""Small models on their way out: a narrow ResNet and transformers, dense and after a real cut."""

from typing import Any

import pytest
import torch

import demp
import killing
from demp.graph.joins import model_joins
from demp.train.models import build
from shim import install_torchvision_shim

install_torchvision_shim()
transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50,
    "max_position_embeddings": 32,
}  # fmt: skip


def bert():
    """A classifier of token sequences."""
    config = transformers.BertConfig(**SMALL, hidden_act="relu", num_labels=3)
    return seeded(transformers.BertForSequenceClassification, config)


def llama():
    """A decoder with gated hidden layers."""
    config = transformers.LlamaConfig(**SMALL, hidden_act="relu", num_key_value_heads=2)
    return seeded(transformers.LlamaForCausalLM, config)


def tied_bert():
    """Its output layer is its word embedding."""
    return seeded(transformers.BertForMaskedLM, transformers.BertConfig(**SMALL, hidden_act="relu"))


def bart():
    """An encoder and a decoder whose hidden layers have a config field each, of the same size."""
    config = transformers.BartConfig(
        d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, encoder_layers=2, decoder_layers=2, vocab_size=50,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=32, activation_function="relu",
        bos_token_id=0, eos_token_id=2, pad_token_id=1, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    return seeded(transformers.BartModel, config)


def seeded(kind, config):
    """A model with weights of its own, the same each time."""
    torch.manual_seed(0)
    return kind(config).eval()


def tokens(count=3):
    """Inputs of a model that reads tokens."""
    return {"input_ids": torch.randint(3, 50, (count, 8)), "attention_mask": torch.ones(count, 8, dtype=torch.long)}


def cut(model, inputs, *losses):
    """Neurons of the MLPs made dead and cut: as many per layer as ``losses`` say, others in every layer."""
    graph = demp.trace(model, inputs)
    layers = [layer for layer in graph.layers if layer.activation != "attention" and "pooler" not in layer.name]
    names = [layer.name for layer in layers if layer.removable.all()]
    counts = dict(zip(names, losses, strict=True))
    dead = {name: [i + 2 * k for k in range(count)] for i, (name, count) in enumerate(counts.items())}
    killing.kill(model, graph, dead, -100.0)
    assert demp.cut(model, dead, example_inputs=inputs).removed == sum(losses)
    return model


def first(output):
    """The first tensor of a transformers output."""
    return next(iter(output.values()))


def resnet():
    """A narrow ResNet-18 for small grey images."""
    torch.manual_seed(0)
    return build("resnet18", num_classes=10, in_channels=1, image_size=8, width=0.125).eval()


MODELS: dict[str, tuple[Any, Any]] = {
    "resnet18": (resnet, lambda count: torch.randn(count, 1, 8, 8)),
    "bert": (bert, lambda count: torch.randint(3, 50, (count, 8))),
}
"""Constructor of the dense model, and inputs of a batch size."""


def small(name, joins=True):
    """One of them after a real cut, and inputs for it; ``joins`` lets block outputs of a ResNet differ."""
    make, questions = MODELS[name]
    model, inputs = make(), (questions(6),)
    if name == "bert":
        return cut(model, inputs, 5, 5), inputs
    graph = demp.trace(model, inputs, joins=joins)
    dead = killing.killed(model, graph, 0.4)
    assert demp.cut(model, dead, example_inputs=inputs, graph=graph).removed > 100
    assert bool(model_joins(model)) == joins
    return model, inputs
