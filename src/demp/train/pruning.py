"""What the method of a run is given: labelled images, the loss, the length of an epoch."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from demp import methods
from demp.files.schema import build
from demp.train.config import TrainConfig
from demp.train.data import Data
from demp.train.parts import DENSE
from demp.train.scale import epoch_share
from demp.train.seeds import derive

Batch = tuple[Tensor, Tensor]


def pruner_of(
    config: TrainConfig,
    trained: nn.Module,
    optimizer: Optimizer,
    data: Data,
    *,
    placed: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    resume: bool,
) -> Any:
    """The pruner of a run, or None in dense training; ``resume=True`` leaves the model dense for a saved state.

    ``trained`` is the model or what wraps it; ``placed`` brings images into the memory layout that it has by then.
    """
    name = config.method.name
    if name == DENSE:
        return None
    total_steps = config.total_steps(data.facts.train_size)
    options = build(methods.config_class(name), options_of(config, data.facts.train_size), "method.options")
    requirements = methods.find(name)(options, total_steps).requirements()
    return methods.create(
        name,
        trained,
        optimizer,
        example_inputs=(placed(data.example()),),
        total_steps=total_steps,
        config=options,
        attach=False,
        batches=examples(data, placed, whole=requirements.scores or requirements.zeros),
        loss_fn=loss,
        seed=derive(config.seed, "pruner"),
        resume=resume,
        shows_cuts=False,  # the run's observers do
    )


def options_of(config: TrainConfig, train_size: int) -> dict[str, Any]:
    """The method's options, with the steps of an epoch where the method asks for them and the config does not say.

    An epoch of the run is a share of it, of the data a pass over the training split.
    """
    options = dict(config.method.options)
    defaults = {field.name: field.default for field in fields(methods.config_class(config.method.name))}
    if "epoch_steps" in defaults and options.get("epoch_steps") is None:
        of_data = options.get("epoch_of", defaults.get("epoch_of")) == "data"
        own = train_size / config.batch_size
        steps = own if of_data else epoch_share(config.recipe) * config.total_steps(train_size)
        options["epoch_steps"] = max(1, round(steps))
    return options


def examples(data: Data, placed: Callable[[Tensor], Tensor], *, whole: bool) -> Callable[[int], Iterator[Batch]]:
    """Un-augmented training images with labels, drawn by a check's seed.

    Dead neurons are looked for on ``data.probe_batches`` of them. A method that scores takes as many as its config
    says, from a stream that ends with the training split (``whole``).
    """

    def drawn(check_seed: int) -> Iterator[Batch]:
        for x, y in data.labelled_batches(check_seed, whole=whole):
            yield placed(x), y

    return drawn
