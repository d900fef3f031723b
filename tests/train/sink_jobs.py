"""Runs with sinks in processes of their own: one that dies, and one that goes on and reads Trackio back."""

import json
import os
import signal
import sys

import torch

from demp.train import Observer, TrainConfig, resume, train

STEPS, DIES_AT = 30, 23


class Dies(Observer):
    """kill -9 after a step, when Trackio's writer has had its turn."""

    def step(self, run, seconds):
        if run.step == DIES_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def config(out: str) -> TrainConfig:
    return TrainConfig.from_dict(
        {
            "model": {"name": "mlp", "options": {"hidden": [16]}},
            "data": {"name": "digits"},
            "method": {"name": "demp", "options": {"period": 10}},
            "sinks": ["tensorboard", "wandb", "trackio"],
            "steps": STEPS,
            "log_every_steps": 2,
            "eval_every_steps": 6,
            "checkpoint_every_steps": 12,
            "batch_size": 32,
            "device": "cpu",
            "out": out,
        }
    )


def main(what: str, out: str) -> None:
    torch.set_num_threads(1)
    if what == "die":
        train(config(out), observers=[Dies()])
    resume(out)
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    found = [
        (run.name, SQLiteStorage.get_logs(run.project, run.name, run_id=run.id)) for run in trackio.Api().runs("demp")
    ]
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
