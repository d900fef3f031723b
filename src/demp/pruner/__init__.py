"""The pruner: what a training loop attaches, and what it does at every step."""

from demp.pruner.pruner import Pruner

__all__ = ["Pruner"]
