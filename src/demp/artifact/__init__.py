"""A cut model in a folder: weights, its architecture, and the proof that it loads as it was saved."""

from demp.artifact.architecture import content_hash, read_architecture
from demp.artifact.folder import load, save

__all__ = ["content_hash", "load", "read_architecture", "save"]
