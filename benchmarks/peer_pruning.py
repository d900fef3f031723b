"""A peer: structured pruning of another library inside demp's trainer; and the peers of Torch-Pruning.

A peer takes the place of the trainer's pruner, so that data, seeds, schedule, steps, precision and test are the
trainer's own. It has the settings that its authors document, and lands at the FLOPs of the budget or just below.
"""

import importlib
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from demp.errors import UsageError
from demp.train.optim import build_optimizer
from demp.train.run import Run


class NoMasks:
    """A peer removes neurons; it holds no weight at zero in the network that comes out."""

    def masked(self) -> int:
        return 0


class Peer:
    """What `demp.train.run.Run` asks of its pruner, with nothing done yet.

    ``limit`` is the largest number of FLOPs of one forward of one image that the network may come out with.
    """

    masks = NoMasks()
    history: tuple[Any, ...] = ()

    def __init__(self, run: Run, limit: float) -> None:
        self.run, self.limit = run, limit
        self.shapes = Shapes(run.model, run.example[0])
        self.flops = self.shapes.flops()
        if self.flops != run.dense_cost.flops:
            raise UsageError("the network does more than convolutions and linear layers; the peers cannot count that")

    def metrics(self) -> dict[str, float]:
        return {}

    def before_step(self) -> None:
        """Between backward and the optimizer's step."""

    def after_step(self) -> None:
        """After the optimizer's step."""

    def skip_step(self) -> None:
        """The optimizer did not step, since a gradient was infinite."""

    def finish(self) -> None:
        """After the last step."""

    def out_of_reach(self) -> UsageError:
        """Nothing more can go, and the budget is not reached."""
        share = self.limit / self.run.dense_cost.flops
        return UsageError(f"the peer cannot remove enough for {share:.3f} of the FLOPs; give a larger --budget")


@dataclass(frozen=True, kw_only=True)
class TorchPruning:
    """A pruner of Torch-Pruning: regularised training, one global pruning, training of what is left.

    As in ``reproduce/main.py`` of github.com/VainF/Torch-Pruning: channels go in steps of 1/400 of all, ranked anew in
    each step over the whole network, until the FLOPs are reached; the output layer stays; a new optimizer goes on.
    Unlike there, no pretrained network is given, the steps of both phases come out of the one run, whose
    learning-rate schedule spans both, and the run's weight decay holds in both.
    """

    regularizer: float
    """Strength, added to the gradients by ``pruner.regularize``: ``--reg`` of the commands in ``reproduce/readme.md``,
    1e-5 for the scales of batch norms (as in the pruner's signature) and 5e-4 for group norms."""
    sparse_share: float = 0.5
    """Share of the steps before the pruning: ``--sl-total-epochs`` and ``--total-epochs`` are both 100."""
    step: float = 1 / 400
    """Share of all channels that goes before the FLOPs are counted again: ``--iterative-steps``."""
    pruner: str = field(default="BNScalePruner", repr=False)

    def attach(self, run: Run, limit: float) -> Peer:
        return TorchPruningPeer(run, limit, self)


class TorchPruningPeer(Peer):
    """See `TorchPruning`."""

    def __init__(self, run: Run, limit: float, settings: TorchPruning) -> None:
        super().__init__(run, limit)
        self.sparse_steps = round(settings.sparse_share * run.total_steps)
        if not 0 < self.sparse_steps < run.total_steps:
            raise UsageError(f"sparse_share is {settings.sparse_share:g}; it must leave steps before and after pruning")
        self.rounds = round(1 / settings.step)
        tp = torch_pruning()
        importance = {
            "BNScalePruner": lambda: tp.importance.BNScaleImportance(),
            "GroupNormPruner": lambda: tp.importance.GroupMagnitudeImportance(p=2, normalizer="max"),
        }[settings.pruner]()
        heads = [m for m in run.model.modules() if isinstance(m, nn.Linear) and m.out_features == classes_of(run)]
        self.pruner = getattr(tp.pruner, settings.pruner)(
            run.model,
            run.example[0],
            importance=importance,
            reg=settings.regularizer,
            global_pruning=True,
            pruning_ratio=1.0,
            iterative_steps=self.rounds,
            ignored_layers=heads,
        )
        self.pruner.update_regularizer()

    def before_step(self) -> None:
        if self.run.step < self.sparse_steps:
            self.pruner.regularize(self.run.model)

    def after_step(self) -> None:
        if self.run.step == self.sparse_steps:
            self.prune()

    def prune(self) -> None:
        """Remove channels until the budget holds; their removal makes new parameters, hence a new optimizer."""
        run = self.run
        run.model.eval()
        run.optimizer.zero_grad(set_to_none=True)
        for _ in range(self.rounds):
            self.pruner.step()
            self.flops = self.shapes.flops()
            if self.flops <= self.limit:
                break
        else:
            raise self.out_of_reach()
        run.optimizer = build_optimizer(run.model, run.config.optimizer)
        run.lay_out()


def classes_of(run: Run) -> int:
    """Width of the output layer."""
    return run.data.facts.num_classes


class Shapes:
    """FLOPs of a network of convolutions and linear layers from the shapes of its weights, however often these change.

    Each weight meets as many positions as in the one forward that is made here: 2 FLOPs per position and entry.
    """

    def __init__(self, model: nn.Module, x: torch.Tensor) -> None:
        self.positions: dict[Any, int] = {}
        layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        hooks = [layer.register_forward_hook(self._note) for layer in layers]
        training = model.training
        with torch.no_grad():
            model.eval()(x)
        model.train(training)
        for hook in hooks:
            hook.remove()

    def _note(self, layer: Any, inputs: Any, output: torch.Tensor) -> None:
        self.positions[layer] = self.positions.get(layer, 0) + output.numel() // layer.weight.shape[0]

    def flops(self) -> int:
        return sum(2 * count * layer.weight.numel() for layer, count in self.positions.items())


def torch_pruning() -> Any:
    """The package, imported."""
    return package("torch_pruning", "pip install '.[dev]'")


def package(name: str, install: str) -> Any:
    """The module ``name``, or a sentence that says how to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} cannot be imported ({error}); install it with: {install}") from error
