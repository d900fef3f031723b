"""A trained network on disk, loaded with what it needs to be fed and tested."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import demp
from demp import artifact
from demp.errors import ArtifactError, UsageError
from demp.train.data import Facts, TestSet, load_test_set
from demp.train.evaluate import evaluate as run_test
from demp.train.models import build
from demp.train.models.trust import refuse_untrusted
from demp.train.parts import DataConfig
from demp.train.run import resolve_device
from demp.train.runfolder import RunFolder

ARCHITECTURE = "architecture.json"


def find(path: str | Path) -> Path:
    """The folder of the saved model: ``path`` itself, or ``model/`` of a finished run."""
    folder = RunFolder(path)
    if (folder.path / ARCHITECTURE).is_file():
        return folder.path
    if (folder.model / ARCHITECTURE).is_file():
        return folder.model
    if folder.config_file.is_file():
        raise UsageError(f"the run {path} is not finished; finish it with: demp resume {path}")
    raise UsageError(f"{path} holds neither a run nor a saved model; check the path")


def load(path: str | Path, *, trust: bool = False) -> tuple[nn.Module, Facts]:
    """The network at ``path`` and the facts of the data that it was trained on; ``trust`` as in `builder_of`."""
    builder = builder_of(path, trust=trust)
    model = demp.load(lambda: build(**builder["model"]), find(path))
    return model, facts_of(builder, path)


def facts_of(builder: dict[str, Any], path: str | Path) -> Facts:
    """What the builder says of the data."""
    try:
        return Facts.from_dict(builder["data"])
    except (TypeError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} does not say what its pictures are ({error}); save the model again") from None


def builder_of(path: str | Path, *, trust: bool = False) -> dict[str, Any]:
    """How the dense network is built (``model``) and fed (``data``), as it was saved.

    Raises:
        UsageError: the file does not say so, or names a model of the user's own, whose code building it would run;
            ``trust`` allows that.
    """
    folder = find(path)
    builder = artifact.read_architecture(folder)["builder"]
    if not isinstance(builder, dict) or not {"model", "data"} <= builder.keys():
        raise UsageError(
            f"{folder} was not saved by demp's trainer and does not say how to build its model; "
            "load it with demp.load(build, path)"
        )
    if not trust:
        refuse_untrusted(builder["model"], folder / ARCHITECTURE)
    return builder


def run_of(path: str | Path) -> RunFolder | None:
    """The run that the network at ``path`` came from, if its folder is still around it."""
    folder = RunFolder(find(path).parent)
    return folder if folder.config_file.is_file() else None


def test_set(
    path: str | Path, facts: Facts, device: torch.device, *, data: str = "", split: str = ""
) -> tuple[str, TestSet]:
    """Name and test split of the data set that the network was trained on, or of another one."""
    run = run_of(path)
    own = DataConfig(name=facts.name) if run is None else run.config().data
    config = replace(
        own if data in ("", own.name) else DataConfig(name=data),
        validation=0.0,
        image_size=facts.image_size,
        store_size=facts.store_size,
        normalize=facts.normalize,
    )
    config = replace(config, test_split=split or config.test_split)
    return config.name, load_test_set(config, facts, device)


def evaluate(
    path: str | Path,
    *,
    data: str = "",
    split: str = "",
    batch_size: int = 512,
    device: str = "auto",
    trust: bool = False,
) -> dict[str, Any]:
    """Test the network at ``path`` on a whole test split, by default of its own data set; see `load`."""
    model, facts = load(path, trust=trust)
    target = torch.device(resolve_device(device))
    name, test = test_set(path, facts, target, data=data, split=split)
    model = model.to(target)
    scores = run_test(model, test.batches(batch_size))
    cost = demp.cost(model, (next(test.batches(1))[0],))
    names = ("neurons", "parameters", "flops", "paper_flops", "bytes")
    return {
        "model": str(find(path)),
        "data": name,
        "split": split or "test",
        "examples": len(test),
        **scores,
        **{name: getattr(cost, name) for name in names},
    }
