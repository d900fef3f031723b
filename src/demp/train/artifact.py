"""A trained network on disk, loaded with what it needs to be fed and tested."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from demp import files
from demp.analysis.costs import cost
from demp.artifact import load as load_saved
from demp.artifact.architecture import ARCHITECTURE, read_architecture
from demp.errors import ArtifactError, DempError, UsageError
from demp.files.schema import build as build_checked
from demp.train.data import TestSet, load_test_set
from demp.train.evaluate import evaluate as run_test
from demp.train.facts import Facts
from demp.train.models import build
from demp.train.models.trust import raise_if_untrusted
from demp.train.parts import DataConfig
from demp.train.run import resolve_device
from demp.train.runfolder import RunFolder

MOST_CHANNELS, LARGEST_SIDE = 64, 8192
"""Of images."""


def find(path: str | Path) -> Path:
    """The folder of the saved model: ``path`` itself, or ``model/`` of a finished run.

    Raises:
        UsageError: the run is not finished, or there is neither a run nor a model.
    """
    folder = RunFolder(path)
    for place in (folder.path, folder.model):
        if (files.settled(place) / ARCHITECTURE).is_file():
            return files.settled(place)
    if folder.config_file.is_file():
        raise UsageError(f"the run {path} is not finished; finish it with: demp resume {path}")
    raise UsageError(f"{path} holds neither a run nor a saved model; check the path")


def load(path: str | Path, *, trust: bool = False) -> tuple[nn.Module, Facts]:
    """The network at ``path`` and the facts of the data that it was trained on; ``trust`` as in `builder_of`.

    Raises:
        ArtifactError: the files are not as they were written, or do not say how to feed the network.
        UsageError: see `builder_of`.
    """
    builder = builder_of(path, trust=trust)
    return load_saved(constructor(builder, path), find(path)), facts_of(builder, path)


def constructor(builder: dict[str, Any], path: str | Path) -> Callable[[], nn.Module]:
    """What makes the dense network; a network that cannot be made is the fault of the file."""
    model = builder["model"]

    def make() -> nn.Module:
        try:
            return build(**model)
        except DempError:
            raise
        except Exception as error:  # whatever the sizes in the file bring about in the layers
            if ":" in model["name"] and torch.get_default_device().type == "meta":
                raise  # a library's model, which may need values: it is made for real next
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ArtifactError(f"{path}: its network cannot be built ({reason[:200]}); save it again") from error

    return make


def facts_of(builder: dict[str, Any], path: str | Path) -> Facts:
    """What the builder says of the data.

    Raises:
        ArtifactError: it says nothing of them, or nothing that can be.
    """
    try:
        facts = build_checked(Facts, builder["data"], "data")
    except (TypeError, UsageError) as error:
        raise ArtifactError(f"{path} does not say what its images are ({error}); save the model again") from None
    if not (0 < facts.channels <= MOST_CHANNELS and 0 < facts.image_size <= LARGEST_SIDE and facts.num_classes > 0):
        raise ArtifactError(f"{path} says that its images are {facts.channels} x {facts.image_size}²; save it again")
    return facts


def builder_of(path: str | Path, *, trust: bool = False) -> dict[str, Any]:
    """How the dense network is built (``model``) and fed (``data``), as it was saved.

    Raises:
        UsageError: the file does not say so, or names a model of the user's own, whose code building it would run;
            ``trust`` allows that.
    """
    folder = find(path)
    builder = read_architecture(folder).get("builder")
    if not isinstance(builder, dict) or not {"model", "data"} <= builder.keys():
        raise UsageError(
            f"{folder} was not saved by demp's trainer and does not say how to build its model; "
            "load it with demp.load(build, path)"
        )
    if not trust:
        raise_if_untrusted(builder["model"], folder / ARCHITECTURE)
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
    """Test the network at ``path`` on a whole test split, by default of its own data set; see `load`.

    Raises:
        UsageError: the data do not fit the network; see `load`.
    """
    model, facts = load(path, trust=trust)
    target = torch.device(resolve_device(device))
    name, test = test_set(path, facts, target, data=data, split=split)
    model = model.to(target)
    scores = run_test(model, test.batches(batch_size))
    now = cost(model, (next(test.batches(1))[0],))
    names = ("neurons", "parameters", "flops", "paper_flops", "bytes")
    return {
        "model": str(find(path)),
        "data": name,
        "split": split or "test",
        "examples": len(test),
        **scores,
        **{name: getattr(now, name) for name in names},
    }
