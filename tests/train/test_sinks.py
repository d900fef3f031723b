"""What viewers show is what metrics.jsonl holds, also after a kill -9: read back from files of the real libraries."""

import json
import os
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import sink_jobs

import forks
from demp.cli import main
from demp.errors import UsageError
from demp.train import TrainConfig, train
from demp.train.choices import SinkName
from demp.train.runfolder import read_lines
from demp.train.sinks import SINKS, Feed

Line = tuple[int, dict[str, float]]
pytestmark = pytest.mark.timeout(900)  # processes of their own, each with three libraries to import


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of a run that was killed at a step without checkpoint and went on, and what Trackio says of it."""
    home = tmp_path_factory.mktemp("sinks")
    out = home / "run"
    environment = {**os.environ, "WANDB_MODE": "offline", "TRACKIO_DIR": str(home / "trackio")}
    command = [sys.executable, str(Path(sink_jobs.__file__))]
    dead = forks.run([*command, "die", str(out)], env=environment, cwd=home, capture_output=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    before = read_lines(out / "metrics.jsonl")
    assert before[-1]["step"] == sink_jobs.DIES_AT - 1
    done = forks.run([*command, "resume", str(out)], env=environment, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout.splitlines()[-1])


def written(out: Path) -> list[Line]:
    """The numbers of metrics.jsonl, by step."""
    return [
        (line["step"], {key: value for key, value in line.items() if key not in ("step", "split")})
        for line in read_lines(out / "metrics.jsonl")
    ]


def by_step(lines: list[Line]) -> dict[int, dict[str, float]]:
    """Lines of one step together."""
    found: dict[int, dict[str, float]] = {}
    for step, values in lines:
        found.setdefault(step, {}).update(values)
    return found


def scalars(lines: list[Line]) -> dict[str, list[tuple[int, float]]]:
    """By name: every value with its step, in the precision that TensorBoard keeps."""
    found: dict[str, list[tuple[int, float]]] = {}
    for step, values in lines:
        for name, value in values.items():
            found.setdefault(name, []).append((step, float(np.float32(value))))
    return found


def wandb_records(file: Path) -> Iterator[Any]:
    """Records of a .wandb file: LevelDB's log format in blocks of 32 KiB, a message in each."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, message = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(message)
            message = b""


@pytest.mark.slow
def test_the_run_was_interrupted_between_its_lines(run):
    out, _ = run
    steps = [step for step, _ in written(out)]
    assert steps == sorted(steps) and steps[-1] == sink_jobs.STEPS
    assert len(scalars(written(out))["train/loss"]) == sink_jobs.STEPS // 2
    assert "prune/neurons_alive" in scalars(written(out))


@pytest.mark.slow
def test_tensorboard_holds_every_value_once(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, _ = run
    events = EventAccumulator(str(out / "tensorboard"), purge_orphaned_data=False).Reload()
    found = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert found == scalars(written(out))


@pytest.mark.slow
def test_wandb_holds_every_value_once(run):
    out, _ = run
    (file,) = out.glob("wandb/offline-run-*/*.wandb")
    lines, config = [], {}
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            values = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            lines.append((record.history.step.num, {k: v for k, v in values.items() if not k.startswith("_")}))
        if record.WhichOneof("record_type") == "run":
            config |= {entry.key: json.loads(entry.value_json) for entry in record.run.config.update}
    assert [step for step, _ in lines] == sorted(by_step(lines))
    assert by_step(lines) == by_step(written(out))
    assert config["method"] == TrainConfig.from_toml(out / "config.toml").to_dict()["method"]


@pytest.mark.slow
def test_trackio_holds_every_line_once(run):
    out, found = run
    ((name, lines),) = found
    assert name == (out / "sinks.txt").read_text().strip()
    assert name.startswith("run-")
    assert [(line.pop("step"), line) for line in lines if line.pop("timestamp")] == written(out)


def test_names_of_config_and_of_sinks_are_the_same():
    assert tuple(SINKS) == get_args(SinkName)


def test_the_flag_sets_the_config_and_the_outcome_stays(monkeypatch, tmp_path, capsys):
    given = []

    class Keeps:
        def __init__(self, folder, name, config):
            given.append(("open", folder, config.sinks))

        def log(self, step, values):
            given.append((step, sorted(values)))

        def close(self):
            given.append("closed")

    monkeypatch.setitem(SINKS, "trackio", ("json", Keeps))
    monkeypatch.setitem(SINKS, "wandb", ("json", Keeps))
    out = tmp_path / "run"
    line = ["train", "--model", "mlp", "--steps", "4", "--batch-size", "32", "--method", "dense", "--device", "cpu"]
    assert main([*line, "--out", str(out), "--sink", "trackio, wandb", "--set", "log_every_steps=9"]) == 0
    losses = ["time/images_per_s", "time/seconds", "time/step_ms", "train/loss", "train/lr"]
    opened = ("open", out, ("trackio", "wandb"))
    assert given == [
        opened, opened, (4, losses), (4, losses), (4, ["eval/loss", "eval/top1"]), (4, ["eval/loss", "eval/top1"]),
        "closed", "closed",
    ]  # fmt: skip
    config = TrainConfig.from_toml(out / "config.toml")
    assert config.merged({"sinks": []}).identity() == config.identity()
    assert config.changes(config.merged({"sinks": []})) == []
    assert config.to_dict().keys() - config.merged({"sinks": []}).to_dict().keys() == {"sinks"}
    capsys.readouterr()


@pytest.mark.parametrize("name", get_args(SinkName))
def test_an_absent_package_is_one_sentence_and_nothing_is_written(name, monkeypatch, tmp_path):
    package = "tensorboard" if name == "tensorboard" else name
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    config = sink_jobs.config(str(tmp_path / "run")).merged({"sinks": [name]})
    with pytest.raises(UsageError, match=rf"needs the package {name}; install it with: pip install 'demp\[{name}\]'"):
        train(config)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_sentence(capsys, tmp_path):
    code = main(["train", "--model", "mlp", "--steps", "2", "--sink", "tensorbord", "--out", str(tmp_path / "run")])
    assert code == 2
    assert "sinks is 'tensorbord'; choose one of tensorboard, wandb, trackio; did you mean 'tensorboard'?" in (
        capsys.readouterr().err
    )
    with pytest.raises(UsageError, match="sinks write beside the run; name its folder with out"):
        train(sink_jobs.config("").merged({"sinks": ["tensorboard"]}))


def test_an_account_that_is_missing_is_one_sentence(monkeypatch, tmp_path):
    import wandb

    def refuses(**_):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuses)
    feed = Feed(("wandb",))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").touch()

    class Run:
        config = sink_jobs.config(str(folder))

    with pytest.raises(UsageError, match="does not begin: No API key configured.; log in with: wandb login, or set"):
        feed.start(Run())  # type: ignore[arg-type]
    feed.close()
