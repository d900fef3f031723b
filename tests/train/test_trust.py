"""Opening a saved folder, or a config from elsewhere, runs no code that the file chooses."""

import json
import shutil
from pathlib import Path

import pytest

from demp import export
from demp.artifact import content_hash
from demp.cli import main
from demp.errors import UsageError
from demp.train import TrainConfig, artifact, resume, train
from demp.train.models import build
from demp.train.models.trust import harmless, raise_if_untrusted

OLD = Path(__file__).parent.parent / "old"
COMMANDS = {
    "inspect": lambda path: ["inspect", path],
    "eval": lambda path: ["eval", path],
    "export": lambda path: ["export", path, "--to", "safetensors"],
}
OPENS = {
    "load": artifact.load,
    "evaluate": artifact.evaluate,
    "builder": artifact.builder_of,
    "export": lambda path: export(path, f"{path}-out", to="safetensors"),
}


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """Modules whose import or call leaves a file behind."""
    fired = tmp_path / "fired"
    (tmp_path / "trap.py").write_text(
        f"import pathlib\nfrom torch import nn\npathlib.Path({str(fired)!r}).touch()\n\n\n"
        "def make(num_classes, hidden=(16, 12), **options):\n"
        "    from demp.train.models import mlp\n"
        "    return mlp(num_classes, in_channels=1, image_size=8, hidden=hidden)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "trap", raising=False)
    return fired


def hostile(tmp_path, model) -> Path:
    """A saved model whose builder is another, hashes and all."""
    path = tmp_path / "hostile"
    shutil.copytree(OLD / "model", path)
    file = path / "architecture.json"
    architecture = json.loads(file.read_text())
    architecture["builder"]["model"] = {**architecture["builder"]["model"], **model}
    architecture["sha256"] = content_hash(architecture)
    file.write_text(json.dumps(architecture))
    return path


@pytest.mark.parametrize("name", ["os:system", "trap:make", "subprocess:Popen", ":x", "a.b:c"])
@pytest.mark.parametrize("way", OPENS)
def test_a_saved_model_cannot_name_code(tmp_path, trap, way, name):
    path = hostile(tmp_path, {"name": name, "command": f"touch {trap}"})
    with pytest.raises(UsageError, match="would import and run that code; if you know .*--trust"):
        OPENS[way](path)
    assert not trap.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_says_so_in_one_sentence(tmp_path, trap, command, capsys):
    assert main(COMMANDS[command](str(hostile(tmp_path, {"name": "trap:make"})))) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "'trap:make'" in said and not trap.exists()


def test_with_trust_it_is_built(tmp_path, trap):
    path = hostile(tmp_path, {"name": "trap:make", "width": 1.0})
    model, _ = artifact.load(path, trust=True)
    assert trap.exists() and model.fc1.out_features == 14


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ({"name": "timm:resnet18", "pretrained": True}, "pretrained"),
        ({"name": "timm:resnet18", "checkpoint_path": "/x"}, "checkpoint_path"),
        ({"name": "timm:resnet18", "pretrained_cfg": {"file": "x"}}, "pretrained_cfg"),
        ({"name": "torchvision:resnet18", "weights": "DEFAULT"}, "weights"),
        ({"name": "transformers:bert", "attn_implementation": "someone/kernel"}, "attn_implementation"),
        ({"name": "transformers:bert", "trust_remote_code": True}, "trust_remote_code"),
        ({"name": "transformers:bert", "auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"name": "transformers:detr", "use_pretrained_backbone": True}, "use_pretrained_backbone"),
        ({"name": "transformers:clip", "text_config": {"quantization_config": 1}}, "text_config"),
        ({"name": "mlp", "hidden": ["x"]}, "hidden"),
        ({"name": "mlp", "anything": "words"}, "anything"),
    ],
)
def test_options_that_fetch_or_run(model, key):
    with pytest.raises(UsageError, match=f"with {key}="):
        raise_if_untrusted(model, "file")


@pytest.mark.parametrize("model", [None, [], "mlp", {}, {"name": 3}, {"name": None}])
def test_what_is_no_model(model):
    with pytest.raises(UsageError, match="does not name its model"):
        raise_if_untrusted(model, "file")


def test_ordinary_options_pass():
    raise_if_untrusted({"name": "timm:resnet18", "drop_path_rate": 0.1, "act_layer": "gelu"}, "file")
    raise_if_untrusted({"name": "transformers:vit", "hidden_size": 16, "attn_implementation": "eager"}, "file")
    raise_if_untrusted({"name": "mlp", "num_classes": 3, "hidden": [3, 4], "width": 0.5, "activation": None}, "file")
    assert harmless("text_config", {"hidden_size": 3, "hidden_act": "relu"}) and not harmless(3, 3)


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "builtins:print"])
def test_even_trusted_it_must_be_a_model(name):
    with pytest.raises(UsageError, match=r"is no model; name a torch.nn.Module class, or a function that returns"):
        build(name, num_classes=3)


def config(out) -> TrainConfig:
    return TrainConfig.from_dict(
        {"model": {"name": "trap:make"}, "data": {"name": "digits"}, "steps": 4, "device": "cpu", "out": str(out)}
        | {"checkpoint_every_steps": 2, "method": {"name": "dense"}}
    )


def test_a_run_of_an_own_model_is_resumed_with_trust(tmp_path, trap):
    out = tmp_path / "run"
    train(config(out))
    (out / "summary.json").unlink()
    (out / "checkpoints" / "step-000000004.pt").unlink()
    with pytest.raises(UsageError, match=r"config.toml asks for the model 'trap:make'"):
        resume(out)
    assert main(["resume", str(out)]) == 2
    assert main(["resume", str(out), "--trust"]) == 0
    assert main(["eval", str(out), "--trust"]) == 0


def test_a_config_file_needs_trust_and_a_flag_does_not(tmp_path, trap, capsys):
    file = tmp_path / "config.toml"
    file.write_text('steps = 1\ndevice = "cpu"\n[model]\nname = "trap:make"\n[data]\nname = "digits"\n')
    for command in (["train"], ["compare", "--methods", "demp"], ["sweep", "--seeds", "2"]):
        assert main([*command, "--config", str(file), "--out", str(tmp_path / "run")]) == 2
        assert "'trap:make'" in capsys.readouterr().err and not trap.exists()
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "run"), "--trust"]) == 0
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "two"), "--model", "trap:make"]) == 0
