"""A finished run, as something to export: its network, its constructor, images of its test set, its summary."""

from pathlib import Path

import torch

from demp.exports.formats import Subject
from demp.train import artifact
from demp.train.models import build

IMAGES = 16
"""Test images on which an export is compared with the network."""


def subject_of(path: str | Path, *, trust: bool = False) -> Subject:
    """The network at ``path``: a run, or a model that the trainer saved; ``trust`` as in `demp.train.artifact.load`."""
    model, facts = artifact.load(path, trust=trust)
    builder = artifact.builder_of(path, trust=trust)
    _, test = artifact.test_set(path, facts, torch.device("cpu"))
    images, _ = next(test.batches(IMAGES))
    run = artifact.run_of(path)
    return Subject(
        model,
        (images,),
        build=lambda: build(**builder["model"]),
        builder=builder,
        summary=run.summary() if run is not None else None,
    )
