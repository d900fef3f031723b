"""Work for jobs in tests: plain functions, called by name."""

import os
import signal
import time
from pathlib import Path

import torch

from demp.experiments.sweep.training import trained
from demp.train import Observer, TrainingInterrupted
from demp.train.stopping import ASKED


def doubled(arguments, folder, observers):
    """Twice a number; how often it was called stands in its folder."""
    folder.mkdir(exist_ok=True)
    calls = folder / "calls"
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    return {"twice": 2 * arguments["number"], "calls": len(calls.read_text())}


def failing(arguments, folder, observers):
    """Always an error."""
    raise ArithmeticError("it broke\nbadly")


def leaving(arguments, folder, observers):
    """Takes its process along."""
    print("last words", flush=True)
    os._exit(7)


def unwritable(arguments, folder, observers):
    """No JSON."""
    return {"path": Path()}


class Held(Observer):
    """Says that a training has come to a step, and waits there until it may go on or is to stop."""

    def __init__(self, folder, arguments, others):
        self.others = others
        self.reached = folder.parent / f"{folder.name}.reached"
        self.gate, self.at, self.run = Path(arguments["gate"]), arguments["at"], None

    def start(self, run):
        self.run = run

    def step(self, run, seconds):
        if run.step == self.at and not self.gate.exists():
            self.reached.write_text(str(os.getpid()))
            while not self.gate.exists() and not any(other.asks_to_stop() for other in self.others):
                time.sleep(0.01)


def held(arguments, folder, observers):
    """A training that waits at a step for a file."""
    return trained({"config": arguments["config"]}, folder, [*observers, Held(folder, arguments, observers)])


def suicidal(arguments, folder, observers):
    """Killed each time, like a process that takes too much memory."""
    folder.mkdir(exist_ok=True)
    (folder / str(len(list(folder.iterdir())))).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def surrounded(arguments, folder, observers):
    """What a process is given."""
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return {
        "process": os.getpid(),
        "threads": torch.get_num_threads(),
        **{name: os.environ.get(name) for name in names},
    }


def meeting(arguments, folder, observers):
    """Waits for a file; says who led it."""
    while not Path(arguments["gate"]).exists():
        time.sleep(0.01)
    return {"leader": os.getppid(), **doubled(arguments, folder, observers)}


def signalled(arguments, folder, observers):
    """A signal comes while it ends, too late for it."""
    os.kill(os.getpid(), arguments["number"])
    return doubled(arguments, folder, observers)


def patient(arguments, folder, observers):
    """Ends when an observer says so; looks at no signal itself."""
    os.kill(os.getpid(), arguments["number"])
    assert any(observer.asks_to_stop() for observer in observers)
    raise TrainingInterrupted("stopped", 128 + ASKED)


def noted(arguments, folder, observers):
    """Nothing, at once."""
    return {}
