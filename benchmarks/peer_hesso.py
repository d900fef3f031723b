"""HESSO of only_train_once inside demp's trainer."""

import contextlib
import importlib
import io
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import demp
from demp.errors import UsageError
from demp.train.run import Run
from peer_pruning import Peer, package


@dataclass(frozen=True, kw_only=True)
class Hesso:
    """HESSO of only_train_once 3.0.1: its optimizer zeroes groups of weights, which leave after the last step.

    The shares are those of tutorial 01 (ResNet-18 on CIFAR-10) of github.com/tianyic/only_train_once; all else is the
    default of ``OTO.hesso``. It replaces the optimizer by its variant of the same kind, learning rate, momentum and
    decay. With sgd the steps before its first period are those of torch's SGD; its adam and adamw begin their moments
    with the whole first gradient instead of its share 1 - beta, so that their early steps differ from torch's.

    HESSO takes a share of groups, not of FLOPs. Whenever a period begins, the number of groups that go in all is set to
    the smallest one that, with the scores of that moment, brings the FLOPs to the budget. A user would need several
    runs to find that number; this costs HESSO none.
    """

    start: float = 0.1
    """Share of the steps before the first period."""
    span: float = 0.1
    """Share of the steps in which the groups go."""
    periods: int = 10
    """Periods of that span, each with as many groups."""

    def attach(self, run: Run, limit: float) -> Peer:
        return HessoPeer(run, limit, self)


VARIANTS = {"adamw": "adamw", "adam": "adam", "sgdm": "sgd"}
"""Optimizer of the trainer -> variant of HESSO."""


class HessoPeer(Peer):
    """See `Hesso`."""

    def __init__(self, run: Run, limit: float, settings: Hesso) -> None:
        super().__init__(run, limit)
        config = run.config.optimizer
        if config.name not in VARIANTS:
            raise UsageError(f"HESSO has no variant of {config.name}; choose one of {', '.join(VARIANTS)}")
        first, second = config.betas if config.name.startswith("adam") else (config.momentum, None)
        span = max(1, round(settings.span * run.total_steps))
        self.graph = demp.trace(run.model, run.example)
        self.classes = {slot.tensor: slot.classes for slot in self.graph.slots if slot.axis == 0}
        with silent():
            self.oto = only_train_once().OTO(model=run.model, dummy_input=run.example[0])
            self.optimizer: Any = self.oto.hesso(
                variant=VARIANTS[config.name],
                lr=config.lr,
                weight_decay=config.weight_decay,
                first_momentum=first,
                second_momentum=second,
                start_pruning_step=round(settings.start * run.total_steps),
                pruning_steps=span,
                pruning_periods=min(settings.periods, span),
            )
        run.optimizer = self.optimizer
        self.groups = [g for g in self.optimizer.param_groups if g["is_prunable"] and not g["is_auxiliary"]]
        self.identify: Callable[[], None] = self.optimizer.identify_redundant_groups
        self.optimizer.identify_redundant_groups = self.identify_on_budget

    def identify_on_budget(self) -> None:
        """Set how many groups go in the period that begins, then let HESSO choose them."""
        hesso = self.optimizer
        here = hesso.curr_pruning_period
        needed = self.needed()
        hesso.active_num_redundant_groups[here] = math.ceil(needed / (hesso.pruning_periods - here))
        hesso.target_num_redundant_groups = len(hesso.pruned_group_idxes) + needed
        with on_its_device(self.run.device):
            self.identify()

    def needed(self) -> int:
        """The smallest number of further groups with which the budget holds."""
        few, many = -1, sum(group["num_groups"] for group in self.groups) - len(self.optimizer.pruned_group_idxes)
        if self.flops_after(many) > self.limit:
            raise self.out_of_reach()
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if self.flops_after(middle) <= self.limit else (middle, many)
        return many

    def flops_after(self, number: int) -> float:
        """FLOPs without the groups that went and the next ``number``, chosen as `HESSO` chooses them."""
        hesso, gone = self.optimizer, self.graph.none_removed()
        before = hesso.pruned_group_idxes
        lowest = torch.topk(-torch.cat(hesso.global_scores), len(before) + number).indices.cpu().numpy()
        chosen = np.setdiff1d(lowest, before)[:number]
        for group in self.groups:
            pruned = list(hesso.pruned_idxes[group["id"]])
            new = (np.intersect1d(chosen, group["global_idxes"]) - group["global_start_idx"]).tolist()
            left_over = group["num_groups"] - len(pruned) - 1  # one group of each layer stays
            for name in group["p_names"]:
                gone[self.classes[name][pruned + new[:left_over]]] = True
        return self.graph.at(gone).flops()

    def finish(self) -> None:
        """Remove the zeroed groups."""
        run = self.run
        with silent(), patch("torch.save"):  # it would also write the network to disk
            self.oto.construct_subnet(save_full_group_sparse_model=False)
        self.flops = self.shapes.flops()
        if self.flops > self.limit:
            raise self.out_of_reach()
        run.lay_out()


def only_train_once() -> Any:
    """The package, imported.

    Its last release (3.0.1, January 2024) asks for graphviz and pydot, which only its drawings need, and for Python
    below 3.12. What it imports of torch has moved since; here it finds it under the old names.
    """
    with contextlib.suppress(ImportError):  # torch of its time has them where it looks
        inside = "torch.onnx._internal.torchscript_exporter"
        sys.modules.setdefault("torch.onnx._globals", importlib.import_module(f"{inside}._globals"))
        if not hasattr(torch.onnx, "_optimize_graph"):
            utils = importlib.import_module(f"{inside}.utils")
            torch.onnx._optimize_graph = utils._optimize_graph  # pyright: ignore[reportAttributeAccessIssue]
    return package("only_train_once", "pip install --no-deps only-train-once==3.0.1, under Python 3.11")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without the prints and warnings of a library."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def on_its_device(device: torch.device) -> Iterator[None]:
    """HESSO calls ``.cuda()`` on one tensor; on a CPU the tensor stays where it is."""
    if device.type == "cuda":
        yield
        return
    with patch.object(torch.Tensor, "cuda", lambda tensor: tensor):
        yield
