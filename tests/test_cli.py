import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import demp
import forks
from demp import recipes
from demp.cli import inspect as inspect_command
from demp.cli import main
from demp.cli.overrides import FLAGS, free_folder, parse_settings
from demp.train import TrainConfig, checkpoint
from demp.train.runfolder import read_lines

TINY = ["--model", "mlp", "--steps", "12", "--batch-size", "32", "--device", "cpu"]


def run(capsys, *arguments):
    """Exit code, stdout and stderr of one command, which must not leave a traceback."""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


def answer(capsys, *arguments):
    """The JSON object of a command that must succeed."""
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of a network that shrank."""
    out = tmp_path_factory.mktemp("runs") / "run"
    code = main(["train", *TINY, "--out", str(out), "--lr", "0.03", "--noise", "0.05", "--steps", "40"])
    assert code == 0
    return out


def test_help_names_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("train", "resume", "inspect", "eval", "export", "recipes", "demo"):
        assert command in out


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_command_the_help_is_shown(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "") and "Train a network that gets smaller" in out and "demp --version" in out


def test_the_version_needs_no_torch():
    code = "import sys; from demp.cli import main; print(main(['--version']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.stdout.splitlines() == [f"demp {demp.__version__}", "0 False"]


def test_the_module_is_the_command(tmp_path):
    done = subprocess.run([sys.executable, "-m", "demp", "-V"], capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stdout) == (0, f"demp {demp.__version__}\n")


def test_a_command_that_does_not_exist_suggests_one(capsys):
    assert run(capsys, "trian")[2] == "demp: there is no command 'trian'; did you mean 'train'? (demp --help)\n"
    assert "; the commands are train, resume, inspect" in run(capsys, "foo")[2]


def test_train_prints_the_resolved_config_and_the_outcome(finished, capsys, tmp_path):
    out = tmp_path / "run"
    code, text, err = run(capsys, "train", *TINY, "--method", "dense", "--out", str(out))
    assert (code, err) == (0, "")
    assert "model     name=mlp" in text and "optimizer name=adamw lr=0.005" in text
    assert "test accuracy" in text and f"run folder: {out}" in text
    assert "step 12 of 12" in text


def test_train_as_json_is_the_summary(capsys, tmp_path):
    out = tmp_path / "run"
    summary = answer(capsys, "train", *TINY, "--method", "dense", "--out", str(out), "--seed", "3")
    assert summary == {**json.loads((out / "summary.json").read_text()), "out": str(out)}
    assert (summary["seed"], summary["method"], summary["steps"]) == (3, "dense", 12)


@pytest.mark.parametrize("command", ["train", "sweep"])
@pytest.mark.parametrize(
    "budgets", [("--budget", "flops=0.4", "--budget", "flops=0.2"), ("--budget=flops=0.4", "--budget=flops=0.2")]
)
def test_one_run_has_one_budget(capsys, command, budgets):
    assert main([command, *budgets]) == 2
    assert "a run has one budget" in capsys.readouterr().err


def test_flags_win_over_file_wins_over_recipe(tmp_path, capsys):
    file, out = tmp_path / "mine.toml", tmp_path / "run"
    file.write_text('batch_size = 16\nseed = 5\n[model]\nname = "mlp"\n[schedule]\nname = "step"\n')
    answer(
        capsys, "train", "--recipe", "digits", "--config", str(file), "--steps", "6",
        "--seed", "6", "--set", "schedule.factor=0.5", "--set", "optimizer.clip_norm=1",
        "--set", "data.augment.crop=none", "--out", str(out), "--device", "cpu",
        "--noise-keeps", "rate",
    )  # fmt: skip
    config = TrainConfig.from_toml(out / "config.toml")
    assert (config.recipe, config.model.name, config.batch_size) == ("digits", "mlp", 16)
    assert (config.seed, config.schedule.name, config.schedule.factor) == (6, "step", 0.5)
    assert (config.optimizer.clip_norm, config.data.augment.crop) == (1.0, "none")
    assert config.optimizer.lr == recipes.get("digits").optimizer.lr
    assert (
        config.method.options["peak_noise_std"]
        == 1e-4
        == pytest.approx(recipes.get("digits", steps=6, noise_keeps="rate").method.options["peak_noise_std"])
    )


def test_strength_and_noise_are_the_methods_options(finished):
    config = TrainConfig.from_toml(finished / "config.toml")
    assert config.method.options["peak_noise_std"] == 0.05
    assert config.recipe == "plain"


def test_every_flag_sets_a_field_that_exists():
    known = TrainConfig(steps=1, sinks=("wandb",)).to_dict()
    for field in FLAGS.values():
        place = known
        for part in field.split(".")[:2]:
            assert part in place
            place = place[part]


def test_without_out_runs_are_numbered(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = [answer(capsys, "train", *TINY, "--method", "dense")["out"] for _ in range(2)]
    assert names == ["runs/mlp-digits-dense-s0", "runs/mlp-digits-dense-s0-2"]
    assert free_folder("mlp-digits-dense-s0").name == "mlp-digits-dense-s0-3"


def test_settings_are_toml_or_text():
    given = ["a=1", "b=0.5", "c=true", "d=[1, 2]", "e=word", "f=path/to=x", "g='1'"]
    assert parse_settings(given) == {
        "a": 1, "b": 0.5, "c": True, "d": [1, 2], "e": "word", "f": "path/to=x", "g": "1",
    }  # fmt: skip


def test_eval_of_a_run_and_of_an_artifact_agree(finished, capsys):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["neurons"] < summary["neurons_dense"]
    for path in (finished, finished / "model"):
        result = answer(capsys, "eval", str(path))
        assert result["eval/top1"] == summary["eval/top1"]
        assert result["parameters"] == summary["parameters"]
        assert result["flops"] == summary["flops"]
        assert result["examples"] == 355
    code, out, _ = run(capsys, "eval", str(finished), "--data", "digits", "--split", "train")
    assert code == 0 and "train accuracy" in out
    assert answer(capsys, "eval", str(finished), "--split", "train")["examples"] == 1442
    assert run(capsys, "eval", str(finished), "--split", "tset")[0] == 2


def test_inspect_of_a_name_and_of_a_run(finished, capsys):
    dense = answer(capsys, "inspect", "resnet18", "--width", "0.125")
    assert dense["neurons"] == 488
    code, out, _ = run(capsys, "inspect", "vit_b_16", "--width", "0.25", "--image-size", "32",
                       "--option", "patch=8")  # fmt: skip
    assert code == 0 and "removable" in out
    summary = json.loads((finished / "summary.json").read_text())
    assert answer(capsys, "inspect", str(finished))["neurons"] == summary["neurons"]


def test_recipes_are_listed_and_printed(capsys, tmp_path):
    assert list(answer(capsys, "recipes")) == recipes.names()
    code, out, _ = run(capsys, "recipes", "vgg16-cifar10", "--steps", "100")
    assert code == 0
    file = tmp_path / "recipe.toml"
    file.write_text(out)
    assert TrainConfig.from_toml(file) == recipes.get("vgg16-cifar10", steps=100)
    printed = answer(capsys, "recipes", "vgg16-cifar10", "--steps", "100", "--noise-keeps", "displacement")
    assert printed == recipes.get("vgg16-cifar10", steps=100, noise_keeps="displacement").to_dict()


def test_resume_of_a_finished_run_says_so(finished, capsys):
    code, _, err = run(capsys, "resume", str(finished))
    assert code == 2
    assert f"demp: the run {finished} is complete; test it with: demp eval {finished}" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_a_checkpoint_to_resume_from(tmp_path, capsys, number, code):
    out = tmp_path / "run"
    command = [
        sys.executable, "-c", "import sys; from demp.cli import main; sys.exit(main())", "train",
        *TINY, "--steps", "100000", "--method", "dense", "--out", str(out),
        "--set", "log_every_steps=1", "--set", "checkpoint_every_steps=100000",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = forks.Popen(command, env=environment, stdout=forks.PIPE, stderr=forks.PIPE, text=True)
    while process.poll() is None and not _lines(out / "metrics.jsonl"):
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert f"continue with: demp resume {out}" in err
    state = checkpoint.load(checkpoint.newest(out / "checkpoints"))
    assert state["step"] == len(read_lines(out / "metrics.jsonl")) > 0


def _lines(path):
    return path.exists() and path.read_bytes().count(b"\n")


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match="unknown data set"):
        main(["train", *TINY, "--data", "nonsense", "--debug"])


def test_an_error_of_our_own_is_short_and_points_to_debug(monkeypatch, capsys):
    def broken(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("demp.train.loop.train", broken)
    code, _, err = run(capsys, "train", *TINY)
    assert code == 1
    assert err.endswith(
        "demp: unexpected ZeroDivisionError: division by zero (run it again with --debug for the traceback)\n"
    )


@pytest.mark.slow
def test_the_demo_compares_and_reloads(tmp_path, capsys):
    out = tmp_path / "demo"
    code, text, err = run(capsys, "demo", "--steps", "12", "--out", str(out))
    assert code == 0, err
    for row in (
        "test accuracy", "neurons", "parameters", "FLOPs per image", "training time, s", "narrow",
        "training step at end, ms", "training images/s at end", "inference images/s", "file size, kB",
    ):  # fmt: skip
        assert row in text
    assert text.endswith("largest difference of its outputs 0\n")
    assert (out / "dense" / "summary.json").exists() and (out / "demp" / "model").is_dir()
    dense, *small = (json.loads((out / name / "summary.json").read_text()) for name in ("dense", "narrow", "demp"))
    assert all(0.24 < one["flops"] / dense["flops"] <= 0.25 for one in small)


# A person's mistakes: one sentence, exit code 2, no traceback ----------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--recipe", "digit"], "unknown recipe 'digit'; did you mean 'digits'?"),
        (["train", "--model", "resnet81"], "unknown model 'resnet81'"),
        (["train", "--method", "dempp"], "did you mean 'demp'?"),
        (["train", "--data", "cifar11"], "did you mean 'cifar10'?"),
        (["train", "--data", "./nowhere"], "there is no folder ./nowhere"),
        (["train", "--steps", "0"], "steps is 0; give a number above 0"),
        (["train", "--epochs", "-1"], "epochs is -1.0; give a number above 0"),
        (["train", "--steps", "5", "--epochs", "1"], "give one of them"),
        (["train", "--strength", "-1"], "peak_strength is -1"),
        (["train", "--strength", "nan"], "peak_strength is nan"),
        (["train", "--noise", "-0.1"], "peak_noise_std is -0.1"),
        (["train", "--method", "dense", "--strength", "1"], "dense training takes no options"),
        (["train", "--lr", "-1"], "optimizer.lr is -1"),
        (["train", "--optimizer", "sgd"], "choose one of adam, adamw, sgdm, sgdw; did you mean 'sgdw'?"),
        (["train", "--precision", "int8"], "precision is 'int8'"),
        (["train", "--device", "cuda:9"], "'cuda:9' cannot be used here"),
        (["train", "--config", "absent.toml"], "there is no config file absent.toml"),
        (["train", "--set", "schedle.name=step"], "did you mean 'schedule'?"),
        (["train", "--set", "seed"], "'seed' is not KEY=VALUE"),
        (["resume", "nowhere"], "nowhere is not a run folder"),
        (["eval", "nowhere"], "holds neither a run nor a saved model"),
        (["inspect", "resnet81"], "unknown model 'resnet81'"),
        (["recipes", "nothing"], "unknown recipe 'nothing'"),
    ],
)
def test_mistakes(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 2
    assert message in json.loads(out)["error"]
    assert not list(tmp_path.rglob("config.toml"))


@pytest.mark.parametrize("arguments", [["trian"], ["train", "--stesp", "3"], ["train", "--steps", "x"]])
def test_unknown_flags_exit_with_2(capsys, arguments):
    assert run(capsys, *arguments)[0] == 2


def test_a_folder_that_holds_a_run_is_refused(finished, capsys):
    before = (finished / "config.toml").read_text()
    code, _, err = run(capsys, "train", *TINY, "--out", str(finished))
    assert code == 2
    assert f"already holds a run; continue it with: demp resume {finished}" in err
    assert (finished / "config.toml").read_text() == before


def test_a_folder_that_holds_something_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    code, _, err = run(capsys, "train", *TINY, "--out", str(tmp_path))
    assert code == 2 and "is not empty" in err
    code, _, err = run(capsys, "demo", "--out", str(tmp_path))
    assert code == 2 and "is not empty" in err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_inspect_builds_on_meta_where_that_does(monkeypatch, capsys):
    made = []
    usual = inspect_command.build
    monkeypatch.setattr(inspect_command, "build", lambda *a, **k: made.append(usual(*a, **k)) or made[-1])
    assert main(["inspect", "resnet18", "--width", "0.25", "--json"]) == 0
    on_meta = json.loads(capsys.readouterr().out)
    assert [next(model.parameters()).device.type for model in made] == ["meta"]

    def needs_values(*args, **options):
        model = usual(*args, **options)
        float(next(model.parameters()).sum())
        return model

    monkeypatch.setattr(inspect_command, "build", needs_values)
    assert main(["inspect", "resnet18", "--width", "0.25", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == on_meta
