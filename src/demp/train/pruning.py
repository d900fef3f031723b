"""What the method of a run is given: labelled pictures, the loss, the length of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from demp import methods
from demp.files.schema import build
from demp.train.parts import DENSE
from demp.train.scale import epoch_share
from demp.train.seeds import derive

if TYPE_CHECKING:
    from demp.train.run import Run

Batch = tuple[Tensor, Tensor]


def pruner_of(run: Run, *, fresh: bool) -> Any:
    """The pruner of a run, or None in dense training; ``fresh=False`` leaves the model dense for a saved state."""
    name = run.config.method.name
    if name == DENSE:
        return None
    config = build(methods.config_class(name), options_of(run), "method.options")
    return methods.create(
        name,
        run.trained,
        run.optimizer,
        example_inputs=run.example,
        total_steps=run.total_steps,
        config=config,
        attach=False,
        batches=examples(run, config),
        loss_fn=run.loss,
        seed=derive(run.config.seed, "pruner"),
        fresh=fresh,
        shows_cuts=False,  # the run's observers do
    )


def options_of(run: Run) -> dict[str, Any]:
    """The method's options, with the steps of an epoch where the method asks for them and the config does not say.

    An epoch of the run is a share of it, of the data a pass over the training split.
    """
    method = run.config.method
    options = dict(method.options)
    defaults = {field.name: field.default for field in fields(methods.config_class(method.name))}
    if "epoch_steps" in defaults and options.get("epoch_steps") is None:
        of_data = options.get("epoch_of", defaults.get("epoch_of")) == "data"
        own = run.data.facts.train_size / run.config.batch_size
        steps = own if of_data else epoch_share(run.config.recipe) * run.total_steps
        options["epoch_steps"] = max(1, round(steps))
    return options


def examples(run: Run, config: Any) -> Callable[[int], Iterator[Batch]]:
    """Un-augmented training pictures with labels, drawn by a check's seed.

    Death is judged on ``data.probe_batches`` of them. A method that scores takes as many as its config says, from a
    stream that ends with the training split.
    """
    requirements = methods.find(run.config.method.name)(config, run.total_steps).requirements()
    whole = requirements.scores or requirements.zeros

    def drawn(check_seed: int) -> Iterator[Batch]:
        for x, y in run.data.labelled_batches(check_seed, whole=whole):
            yield run.placed(x), y

    return drawn
