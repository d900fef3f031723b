"""Planned sums and calls in a saved folder: of the right form, or refused in one sentence."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import demp
import hostile
import killing
import nets
from demp.errors import DempError


class Planned(nn.Module):
    """A sum, and calls that a cut plans: parts, a slice, a view with numbers, a mean, and one along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.one = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(3, 4, 1)
        self.two, self.head = nn.Conv2d(12, 6, 1), nn.Linear(6 * 16, 2)

    def forward(self, x):
        h = F.relu(self.stem(x))
        h = F.relu(self.branch(h) + h)
        a, b = h.split((3, 5), 1)
        h = torch.cat([F.relu(self.one(a)), b, h[:, 1:4]], 1)
        h = F.relu(self.two(h)) * h.mean(1, keepdim=True)
        return self.head(h.view(len(x), 6 * 16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    model, inputs = nets.settle(Planned()), (torch.randn(2, 3, 4, 4).double(),)
    graph = demp.trace(model, inputs)
    dead = {layer.name: [at % 2, 2] for at, layer in enumerate(graph.layers) if bool(layer.removable[:3].all())}
    killing.kill(model, graph, dead)
    demp.cut(model, dead, example_inputs=inputs, graph=graph)
    return demp.save(model, tmp_path_factory.mktemp("saved") / "model", example_inputs=inputs)


def load(folder: Path) -> nn.Module:
    return demp.load(lambda: Planned().double(), folder)


def write(folder: Path, target: Path, architecture: dict[str, Any]) -> Path:
    """The saved model with another description of it."""
    target.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return hostile.write(target, architecture)


def planned(folder: Path) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """The description, and the place of every value in its plans."""
    architecture = json.loads((folder / "architecture.json").read_text())
    return architecture, [at for at in hostile.leaves(architecture) if at[0] in ("calls", "joins")]


def test_what_is_saved_is_of_the_form(folder):
    architecture, _ = planned(folder)
    kinds = {plan["kind"] for plans in architecture["calls"].values() for plan in plans.values()}
    assert kinds >= {"split", "slice", "view", "mean"} and architecture["joins"]
    assert all(plan["places"] for group in ("calls", "joins") for plan in architecture[group][""].values())
    load(folder)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (("kind",), "slice", "is of another kind"),
        (("axis",), 99, "the axis of the call"),
        (("width",), -1, "has no number of neurons"),
        (("sizes",), [1], "are not its neurons"),
        (("scale",), float("nan"), "the scale of the call"),
        (("places",), ["here"], "the places of the call"),
        (("places",), "here#0/1", "the places of the call"),
        (("block",), [1], "are no block"),
        (("expand",), [99], "sees what is not"),
        (("other",), 1, "has other parts than a call"),
    ],
)
def test_each_part_of_a_call_has_a_form(folder, tmp_path, part, change, message):
    architecture, _ = planned(folder)
    key = next(key for key in architecture["calls"][""] if key.startswith("split"))
    changed = hostile.changed(architecture, ("calls", "", key, *part), change)
    with pytest.raises(DempError, match=message):
        load(write(folder, tmp_path / "m", changed))


def test_places_of_a_sum_have_a_form(folder, tmp_path):
    architecture, _ = planned(folder)
    changed = hostile.changed(architecture, ("joins", "", "0", "places"), ["x#1"])
    with pytest.raises(DempError, match="the places of the join 0 of ''"):
        load(write(folder, tmp_path / "m", changed))


def test_altered_plans_are_refused_in_one_sentence_or_right(folder, tmp_path):
    """What is of the right form and wrong shows in the proof that every loading makes."""
    rng, outcomes, wanted = random.Random(0), [], load(folder).state_dict()
    architecture, places = planned(folder)
    for number in range(60):
        at, change = places[number % len(places)], rng.choice((*hostile.VALUES, ..., ("rename", "x")))
        try:
            loaded = load(write(folder, tmp_path / "m", hostile.changed(architecture, at, change)))
        except DempError as error:
            assert "\n" not in str(error) and len(str(error)) < 700, (at, change)
            outcomes.append(False)
        else:
            assert loaded.state_dict().keys() == wanted.keys()
            outcomes.append(True)
    assert outcomes.count(False) > 30
