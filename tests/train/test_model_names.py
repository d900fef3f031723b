"""Models by name: built in, of libraries, of users; and the sentences that mistakes get."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

from demp.train.models import build, names
from shim import install_torchvision_shim

install_torchvision_shim()


def on_meta(name: str, **options) -> Any:
    with torch.device("meta"):
        return build(name, **options)


def test_names():
    assert names() == ["mlp", "resnet18", "vgg16", "resnet50", "vit_b_16"]


def test_no_activation_asks_for_the_models_own():
    model = build("vit_b_16", num_classes=5, depth=1, dim=32, activation=None)
    assert any(isinstance(module, nn.GELU) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm:resnet18", {"in_channels": 1, "drop_path_rate": 0.1}),
        ("timm:vit_tiny_patch16_224", {"in_channels": 1, "depth": 1}),
        ("torchvision:squeezenet1_1", {"dropout": 0.1}),
        (
            "transformers:vit",
            {
                "in_channels": 1,
                "patch_size": 8,
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "attn_implementation": "eager",
            },
        ),
    ],
)
def test_models_of_libraries_map_images_to_logits(name, options):
    model = build(name, num_classes=7, image_size=32, **options)
    images = torch.randn(2, options.get("in_channels", 3), 32, 32)
    assert model.eval()(images).shape == (2, 7)


def test_torchvision_vit_gets_the_image_size():
    model = on_meta("torchvision:vit_b_16", num_classes=7, image_size=32)
    assert model(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 7)


@pytest.mark.parametrize(
    ("kind", "options", "head"),
    [
        (
            "bert",
            {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
            "BertForSequenceClassification",
        ),
        ("t5", {"d_model": 32, "d_ff": 64, "num_layers": 1}, "T5ForSequenceClassification"),
        ("vits", {"hidden_size": 16, "vocab_size": 10}, "VitsModel"),
    ],
)
def test_transformers_gets_the_head_that_fits(kind, options, head):
    model = on_meta(f"transformers:{kind}", num_classes=3, **options)
    assert type(model).__name__ == head
    assert head == "VitsModel" or model.config.num_labels == 3


@pytest.fixture
def own_models(tmp_path, monkeypatch):
    """A user's module ``own_models`` on the import path."""
    (tmp_path / "own_models.py").write_text(
        "from torch import nn\n"
        "def head(num_classes, depth=1): return nn.Linear(depth, num_classes)\n"
        "def everything(**options):\n"
        "    model = nn.Identity()\n"
        "    model.options = options\n"
        "    return model\n"
        "def demanding(num_classes, depth): return nn.Identity()\n"
        "def text(): return 'no module'\n"
        "Class = nn.Identity\n"
        "number = 3\n"
    )
    (tmp_path / "broken_models.py").write_text("import a_package_that_is_absent\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_models", None)
    sys.modules.pop("broken_models", None)


@pytest.mark.usefixtures("own_models")
class TestUsersFunction:
    def test_gets_the_arguments_that_it_accepts(self):
        model = build("own_models:head", num_classes=7, depth=2)
        assert (model.in_features, model.out_features) == (2, 7)

    def test_gets_everything_if_it_takes_everything(self):
        model = build("own_models:everything", num_classes=7, width=0.5, activation=None, depth=3)
        expected = {"num_classes": 7, "in_channels": 3, "image_size": 32, "width": 0.5, "depth": 3}
        assert model.options == expected

    def test_may_be_a_class(self):
        assert isinstance(build("own_models:Class", num_classes=7), nn.Identity)

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("own_models:head", {"deep": 2}, "'deep'; its own options are: depth"),
            ("own_models:head", {"width": 0.5}, "no option 'width', but width is 0.5"),
            ("own_models:head", {"activation": "silu"}, "no option 'activation'"),
            ("own_models:demanding", {}, "missing a required argument: 'depth'"),
            ("own_models:text", {}, "returned str; return a torch.nn.Module"),
            ("own_models:haed", {}, "no function 'haed'; did you mean 'head'"),
            ("own_models:number", {}, "no function 'number'"),
            ("own_model:head", {}, "no module 'own_model'; install it, or call demp in its folder"),
            ("own_models.sub:head", {}, "no module 'own_models.sub'"),
            ("tim:resnet18", {}, "did you mean 'timm'"),
        ],
    )
    def test_mistakes(self, name, options, message):
        with pytest.raises(ValueError, match=message):
            build(name, num_classes=7, **options)

    def test_error_inside_the_module_is_shown_as_it_is(self):
        with pytest.raises(ModuleNotFoundError, match="a_package_that_is_absent"):
            build("broken_models:head", num_classes=7)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet19", {}, "unknown model 'resnet19'; did you mean 'resnet18'"),
        ("nothing", {}, "built in are mlp, resnet18, vgg16, resnet50, vit_b_16"),
        (":resnet18", {}, "unknown model ':resnet18'"),
        (
            "resnet18",
            {"zero_init": True},
            "'zero_init'; its own options are: image_stem, zero_init",
        ),
        ("resnet18", {"activation": "swish"}, "choose one of relu, leaky_relu, silu, gelu"),
        ("resnet18", {"width": 0.0}, "width is 0.0; give a positive factor"),
        ("vit_b_16", {"image_size": 30}, "image_size 30 is no multiple of patch 16"),
        ("vit_b_16", {"dim": 32, "heads": 3}, "dim 32 does not split into 3 heads"),
        ("timm:resnet19", {}, "timm has no model 'resnet19'; did you mean 'resnet18'"),
        ("timm:resnet18", {"depht": 1}, "model 'timm:resnet18' has no option 'depht'; remove it"),
        ("timm:resnet18", {"width": 0.5}, "has no option 'width'.* leave it at 1.0"),
        (
            "timm:resnet18",
            {"activation": "silu"},
            "has no option 'activation'.* leave it at 'relu'",
        ),
        ("torchvision:nothing", {}, "see the documentation of torchvision"),
        ("torchvision:resnet18", {"in_channels": 1}, "read 3 channels, not 1"),
        ("torchvision:resnet18", {"depht": 1}, "has no option 'depht'"),
        ("transformers:vitt", {}, "no configuration type 'vitt'; did you mean 'vit"),
        ("transformers:bert", {"hiden_size": 8}, "'hiden_size'; did you mean 'hidden_size'"),
    ],
)
def test_mistakes(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, num_classes=7, **options)


@pytest.mark.parametrize("package", ["timm", "torchvision", "transformers"])
def test_missing_package(package, monkeypatch):
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"{package}.*; run: pip install 'demp\[models\]'"):
        build(f"{package}:resnet18", num_classes=7)


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_torchvision_of_another_build(package, tmp_path, monkeypatch):
    (tmp_path / f"{package}.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"torchvision does not load next to torch .*; reinstall"):
        build(f"{package}:resnet18", num_classes=7)
