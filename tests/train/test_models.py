"""Reference models: sizes against published numbers, functions against torchvision."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from demp.errors import UsageError
from demp.train.models import ACTIVATIONS, build, mlp, resnet18, resnet50, vgg16, vit_b_16
from shim import install_torchvision_shim

install_torchvision_shim()

SMALL = {
    "mlp": {"image_size": 8},
    "resnet18": {"image_size": 16},
    "vgg16": {"image_size": 32},
    "resnet50": {"image_size": 16, "cifar_stem": True},
    "vit_b_16": {"image_size": 16, "patch": 4, "depth": 2, "dim": 256},
}
"""Per model, options that make it small at width 1/8."""


def small(name: str, **options) -> Any:
    return build(name, num_classes=5, **{"width": 1 / 8, **SMALL[name], **options})


def parameters(model: nn.Module, kind: type[nn.Module] = nn.Module) -> int:
    owners = {id(p): p for m in model.modules() if isinstance(m, kind) for p in m.parameters()}
    return sum(p.numel() for p in owners.values())


def sites(model: nn.Module, images: Tensor, axis: int = 1) -> dict[str, int]:
    """Width of each activation site in call order; fails if a site is called twice."""
    widths: dict[str, int] = {}

    def watch(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            assert name not in widths
            widths[name] = output.shape[axis]

        return hook

    kinds = tuple(type(make()) for make in ACTIVATIONS.values())
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(watch(name))
    model.eval()(images)
    return widths


def on_meta(builder, *args, **options) -> Any:
    with torch.device("meta"):
        return builder(*args, **options)


# Sizes


def test_resnet50_has_the_published_parameters():
    model = on_meta(resnet50)
    assert parameters(model) == 25_557_032
    assert parameters(model, nn.BatchNorm2d) == 53_120


def test_vit_b_16_has_the_published_parameters():
    assert parameters(on_meta(vit_b_16)) == 86_567_656


def test_mlp_parameters():
    assert parameters(mlp()) == 784 * 100 + 100 + 100 * 300 + 300 + 300 * 10 + 10


@pytest.mark.parametrize(
    ("builder", "options", "neurons"),
    [
        (mlp, {"in_channels": 3, "image_size": 32}, 400),
        (resnet18, {}, 3_904),
        (resnet18, {"image_stem": True}, 3_904),
        (resnet18, {"width": 0.25}, 976),
        (resnet18, {"width": 0.125}, 488),
        (resnet50, {}, 22_720),
        (resnet50, {"width": 0.125}, 2_840),
        # 2 * (64 + 128) + 3 * (256 + 512 + 512) in the convolutions, twice 4,096 in the head
        (vgg16, {}, 4_224 + 8_192),
        (vgg16, {"last_conv": 1024}, 4_736 + 8_192),
    ],
)
def test_neurons(builder, options, neurons):
    images = torch.empty(2, 3, 32, 32, device="meta")
    assert sum(sites(on_meta(builder, **options), images).values()) == neurons


def test_vit_has_one_site_of_neurons_per_block():
    images = torch.empty(2, 3, 224, 224, device="meta")
    widths = sites(on_meta(vit_b_16), images, axis=-1)
    assert widths == {f"blocks.{block}.mlp.act": 3072 for block in range(12)}


@pytest.mark.parametrize(("width", "dim", "heads"), [(0.25, 192, 3), (0.5, 384, 6), (0.3, 230, 2)])
def test_vit_width_keeps_heads_of_64_channels(width, dim, heads):
    model = on_meta(vit_b_16, width=width, depth=1)
    attention = model.blocks[0].attention
    assert (attention.proj.out_features, attention.heads) == (dim, heads)


def test_sites_are_named_by_their_place():
    images = torch.zeros(2, 3, 32, 32)
    assert list(sites(mlp(in_channels=3, image_size=32), images)) == ["act1", "act2"]
    assert list(sites(small("resnet18"), images))[:3] == ["act", "layer1.0.act1", "layer1.0.act2"]
    assert list(sites(small("resnet50"), images))[3] == "layer1.0.act3"
    vgg = list(sites(small("vgg16"), images))
    assert vgg[:3] == ["features.act1_1", "features.act1_2", "features.act2_1"]
    assert vgg[-3:] == ["features.act5_3", "classifier.act1", "classifier.act2"]


def test_narrow_layers_keep_one_neuron():
    assert sites(mlp(width=1e-4), torch.zeros(1, 784)) == {"act1": 1, "act2": 1}


def test_batch_norm_constants():
    for norm in small("resnet18").modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert (norm.momentum, norm.eps) == (0.1, 1e-5)


# The same functions as torchvision's


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return sorted(tuple(value.shape) for value in model.state_dict().values())


def assert_same_outputs(ours: nn.Module, theirs: nn.Module, size: int) -> None:
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours.double().eval()(images), theirs.double().eval()(images), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ours", [resnet18, resnet50])
def test_resnet_equals_torchvision(ours):
    from torchvision import models

    theirs = getattr(models, ours.__name__)(num_classes=1000)
    mine = on_meta(ours, 1000, **({"image_stem": True} if ours is resnet18 else {}))
    assert shapes(mine) == shapes(theirs)
    for name, value in theirs.state_dict().items():
        if "running_mean" in name:
            value.normal_()  # a fresh norm would hide mistakes
    in_order = zip(mine.state_dict(), theirs.state_dict().values(), strict=True)
    mine.load_state_dict(dict(in_order), assign=True)
    mine.load_state_dict(theirs.state_dict())  # the names agree too
    assert_same_outputs(mine, theirs, size=32)


def test_vgg_features_equal_torchvision():
    from torchvision import models

    theirs = models.vgg.make_layers(models.vgg.cfgs["D"], batch_norm=True)
    mine = on_meta(vgg16).features
    in_order = zip(mine.state_dict(), theirs.state_dict().values(), strict=True)
    mine.load_state_dict(dict(in_order), assign=True)
    assert_same_outputs(mine, theirs, size=32)


def test_vit_equals_torchvision():
    from torchvision.models import VisionTransformer

    theirs: Any = VisionTransformer(16, 4, 2, num_heads=2, hidden_dim=32, mlp_dim=128, num_classes=10)
    nn.init.normal_(theirs.heads.head.weight)
    mine = vit_b_16(10, image_size=16, patch=4, depth=2, dim=32, heads=2)
    assert shapes(mine) == shapes(theirs)
    renamed = {
        "conv_proj": "patches",
        "encoder.pos_embedding": "positions",
        "encoder.layers.encoder_layer_": "blocks.",
        "encoder.ln": "norm",
        "heads.head": "head",
        "self_attention.in_proj_": "attention.qkv.",
        "self_attention.out_proj": "attention.proj",
        "ln_": "norm",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
    }
    weights = {}
    for name, value in theirs.state_dict().items():
        for theirs_says, we_say in renamed.items():
            name = name.replace(theirs_says, we_say)
        weights[name] = value
    mine.load_state_dict(weights)
    assert_same_outputs(mine, theirs, size=16)


# Forward and backward


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", SMALL)
def test_logits_and_second_derivatives(name, activation):
    torch.manual_seed(0)
    model = small(name, activation=activation, in_channels=1)
    kinds = {type(m) for m in model.modules()} & {type(make()) for make in ACTIVATIONS.values()}
    assert kinds == {type(ACTIVATIONS[activation]())}
    size = SMALL[name]["image_size"]
    with sdpa_kernel(SDPBackend.MATH):
        logits = model(torch.randn(3, 1, size, size))
        assert logits.shape == (3, 5)
        weights = list(model.parameters())
        gradients = torch.autograd.grad(logits.logsumexp(1).sum(), weights, create_graph=True, materialize_grads=True)
        torch.stack([g.square().sum() for g in gradients]).sum().backward()
    seconds = [w.grad for w in weights if w.grad is not None]
    assert all(second.isfinite().all() for second in seconds)
    assert any(second.any() for second in seconds)


def test_leaky_relu_has_the_slope_of_the_paper():
    torch.testing.assert_close(ACTIVATIONS["leaky_relu"]()(torch.tensor(-1.0)), torch.tensor(-0.05))


@pytest.mark.parametrize("size", [16, 28, 64])
def test_vgg_takes_other_image_sizes(size):
    assert small("vgg16")(torch.randn(2, 3, size, size)).shape == (2, 5)


def test_vgg_dropout_follows_the_hidden_layers():
    names_of_dropout = [
        name
        for name, module in vgg16(width=1 / 64, dropout=0.3).named_modules()
        if isinstance(module, nn.Dropout) and module.p == 0.3
    ]
    assert names_of_dropout == ["classifier.dropout1", "classifier.dropout2"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_zero_last_scale_makes_branches_vanish(name):
    def zero_scales(model: nn.Module) -> int:
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        return sum(not norm.weight.any() for norm in norms)

    assert zero_scales(small(name)) == 0
    model = small(name, zero_init_last_scale=True)
    blocks = [m for m in model.modules() if hasattr(m, "last_norm")]
    assert zero_scales(model) == len(blocks) == (8 if name == "resnet18" else 16)
    identity = blocks[1]
    x = torch.rand(2, identity.conv1.in_channels, 4, 4)
    assert torch.equal(identity(x), x)


# How the weights are drawn


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16"])
def test_weights_can_be_drawn_as_the_authors_did(name: str):
    torch.manual_seed(0)
    own, fan_in, haiku = (small(name, width=0.25, initial=how) for how in ("fan-out", "fan-in", "haiku"))
    for (path, mine), kaiming, plain in zip(own.named_modules(), fan_in.modules(), haiku.modules(), strict=True):
        if isinstance(mine, nn.Conv2d | nn.Linear):
            inputs = mine.weight[0].numel()
            variance = 2 / inputs if isinstance(mine, nn.Conv2d) else CUT_VARIANCE / inputs
            for module, wanted in ((kaiming, variance), (plain, CUT_VARIANCE / inputs)):
                assert not torch.equal(module.weight, mine.weight)
                assert module.bias is None or not module.bias.any()
                most = 2 * (wanted / CUT_VARIANCE) ** 0.5
                assert module.weight.abs().max() <= most * (1 + 1e-6), path
                if module.weight.numel() > 5000:
                    assert module.weight.var().item() == pytest.approx(wanted, rel=0.1), path
        elif isinstance(mine, nn.BatchNorm2d):
            assert (kaiming.weight == 1).all() and not plain.bias.any()


def test_weights_of_the_default_are_those_that_they_were():
    torch.manual_seed(3)
    default = small("resnet18")
    torch.manual_seed(3)
    named = small("resnet18", initial="fan-out")
    assert all(torch.equal(a, b) for a, b in zip(default.parameters(), named.parameters(), strict=True))
    assert all(bool((norm.weight == 0).all()) for norm in last_norms(small("resnet50", **ZERO, initial="haiku")))


def test_an_unknown_way_to_draw_weights_is_refused():
    with pytest.raises(UsageError, match="initial is 'kaiming'; choose one of fan-out, fan-in, haiku"):
        small("vgg16", initial="kaiming")


CUT_VARIANCE = 0.87962566103423978**2
"""Of a standard normal that is cut off at -2 and 2."""
ZERO = {"zero_init_last_scale": True}


def last_norms(model: nn.Module) -> list[Any]:
    return [module.last_norm for module in model.modules() if hasattr(module, "last_norm")]
