"""The reference trainer on a rank."""

from typing import Any

from loops import refused

from demp.train import TrainConfig, resume, train


def config_of(out: str, **changes: Any) -> TrainConfig:
    """A run of 20 steps in which many neurons die."""
    values = {
        "model": {"name": "mlp", "options": {"hidden": [60, 40]}},
        "method": {"name": "demp", "options": {"period": 4, "peak_strength": 0.02, "peak_noise_std": 0.05}},
        "data": {"name": "digits"},
        "optimizer": {"lr": 0.03},
        "steps": 20,
        "batch_size": 32,
        "accumulate": 2,
        "device": "cpu",
        "checkpoint_every_steps": 10,
        "log_every_steps": 4,
        "monitor": {"every_steps": 5, "examples": 101},
        "out": out,
    }
    return TrainConfig.from_dict({**values, **changes})


def trained(out: str) -> None:
    train(config_of(out))


def resumed_run(out: str) -> None:
    resume(out)


def refused_batch() -> tuple[str, str]:
    return refused(lambda: train(config_of("", batch_size=33, accumulate=1)))


def refused_run(out: str) -> tuple[str, str]:
    return refused(lambda: train(config_of(out)))
