"""One seed per purpose: random choices are pure functions of the run's seed and the step."""

import hashlib

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose, such as ("order", epoch); other purposes get unrelated seeds."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(device: torch.device | str, seed: int, *purpose: str | int) -> torch.Generator:
    """A generator on ``device`` for one purpose."""
    return torch.Generator(device).manual_seed(derive(seed, *purpose))
