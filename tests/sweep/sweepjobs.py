"""Jobs for tests of sweeps."""

from demp.experiments.sweep import Job
from demp.train import TrainConfig

CONFIG = TrainConfig.from_dict(
    {
        "model": {"name": "mlp", "options": {"hidden": [8, 6]}},
        "data": {"name": "digits", "probe_size": 50, "probe_batches": 1},
        "method": {"name": "demp", "options": {"peak_strength": 0.3, "period": 4}},
        "steps": 9,
        "log_every_steps": 2,
        "checkpoint_every_steps": 5,
        "batch_size": 32,
        "device": "cpu",
    }
)


def job(name, work="doubled", *, labels=None, **arguments):
    """A job of this folder's work."""
    return Job(name=name, work=f"sweepwork:{work}", arguments=arguments, labels=labels or {})


def numbers(*values):
    """Jobs that double numbers."""
    return [job(f"n{value}", number=value, labels={"number": value}) for value in values]


def held(gate, *seeds, at=7):
    """Trainings that wait at a step until there is a gate."""
    configs = {seed: CONFIG.merged({"seed": seed}).to_dict() for seed in seeds}
    return [job(f"s{seed}", "held", config=configs[seed], gate=str(gate), at=at) for seed in seeds]
