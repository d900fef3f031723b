"""The walks of Appendix B as jobs: simulated, with what the closed forms say beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demp.experiments import theory
from demp.experiments.theory.geometric import KINDS
from demp.train import Observer

ABSORBING = "demp.studies.walks:absorbing"
GEOMETRIC = "demp.studies.walks:geometric"


def absorbing(arguments: Mapping[str, Any], folder: Path, observers: Sequence[Observer]) -> dict[str, Any]:
    """Shares of walks alive (Prop. B.1), the expected ones, and how far they are off in standard deviations."""
    found = theory.absorbing_walks(**arguments)
    return {"shares": found.shares, "expected": found.expected, "deviations": found.deviations}


def geometric(arguments: Mapping[str, Any], folder: Path, observers: Sequence[Observer]) -> dict[str, Any]:
    """Growth of ``log|w|`` at the last of ``times`` (Lemmas B.2 and B.3).

    ``inside`` is the share of walks within ``exp(t (mu -+ epsilon))`` at each of ``times`` that is not before t0.
    """
    noise = KINDS[arguments["noise"]](arguments["std"])
    rate, curvature, times = (arguments[name] for name in ("rate", "curvature", "times"))
    epsilon, delta = arguments["epsilon"], arguments["delta"]
    logs = theory.geometric_walks(noise, rate, curvature, times, walks=arguments["walks"], seed=arguments["seed"])
    mu, spread = theory.growth_rate(noise, rate, curvature), theory.growth_spread(noise, rate, curvature)
    settled = theory.settled_after(noise, rate, curvature, epsilon=epsilon, delta=delta)
    errors = [spread * (time / arguments["walks"]) ** 0.5 for time in times]
    means = [log.mean().item() for log in logs]
    return {
        "mu": mu,
        "bound": theory.rate_bound(noise, rate, curvature),
        "growth": means[-1] / times[-1],
        "deviations": [(mean - mu * time) / error for mean, time, error in zip(means, times, errors, strict=True)],
        "nearer": (logs[-1] < 0).double().mean().item(),
        "settled_after": settled,
        "inside": [
            ((log / time - mu).abs() <= epsilon).double().mean().item()
            for log, time in zip(logs, times, strict=True)
            if time >= settled
        ],
    }
