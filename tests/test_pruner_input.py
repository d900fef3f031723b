"""Bad input to a pruner: one sentence that names the thing, and nothing changed."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import demp
from demp.errors import UsageError
from runs import (
    VECTOR,
    Mlp,
    build,
    examples,
    hooks_on,
    sgd,
    step_hooks,
)  # fmt: skip

# Bad input ----------------------------------------------------------------------------------------------


def attach(model: Any, optimizer: Any, **options) -> demp.Pruner:
    return demp.DemP(model, optimizer, **{"example_inputs": (examples(VECTOR),), "total_steps": 10, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps is 0; give the number of optimizer steps"),
        ({"total_steps": -5}, "total_steps is -5"),
        ({"total_steps": 10.5}, "total_steps is 10.5"),
        ({"peak_strength": math.nan}, "peak_strength is nan; give a finite number"),
        ({"peak_strength": -1e-3}, "peak_strength is -0.001"),
        ({"peak_noise_std": -1.0}, "peak_noise_std is -1.0"),
        ({"peak_noise_std": math.nan}, "peak_noise_std is nan"),
        ({"peak_strenght": 1.0}, "unknown option 'peak_strenght' for demp; did you mean 'peak_strength'"),
        ({"total_step": 10}, "unknown option 'total_step'"),
        ({"batch": []}, "unknown option 'batch' for demp; did you mean 'batches'"),
        ({"schedule": "one_cycle"}, "schedule is 'one_cycle'; choose one of one-cycle, .*; did you mean 'one-cycle'"),
    ],
)
def test_bad_options_are_named_and_leave_no_hooks(options: dict, message: str):
    model = build(Mlp)
    optimizer = sgd(model)
    with pytest.raises(UsageError, match=message):
        attach(model, optimizer, **options)
    assert (hooks_on(model), step_hooks(optimizer)) == (0, 0)


def test_a_numpy_integer_is_a_number_of_steps():
    model = build(Mlp)
    pruner = attach(model, sgd(model), total_steps=np.int64(10))
    assert pruner.total_steps == 10
    assert type(pruner.state_dict()["total_steps"]) is int


def test_an_optimizer_of_another_model_is_refused():
    model = build(Mlp)
    with pytest.raises(UsageError, match="the optimizer holds none of the model's parameters"):
        attach(model, sgd(build(Mlp)))
    with pytest.raises(UsageError, match=r"fc1\.weight is trainable but in none of the given optimizers"):
        attach(model, torch.optim.SGD(model.head.parameters(), lr=0.1))
    for parameter in [*model.fc1.parameters(), *model.fc2.parameters()]:
        parameter.requires_grad_(False)
    assert attach(model, torch.optim.SGD(model.head.parameters(), lr=0.1)).step == 0


class Unprunable(nn.Module):
    """Its only neurons are normalised over before anyone reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(F.relu(self.fc(x))))


def test_models_without_removable_neurons_are_refused_with_the_reason():
    model = nn.Linear(6, 2).double()
    with pytest.raises(UsageError, match=r"Linear has no layer whose neurons can be removed \(no activation function"):
        attach(model, sgd(model))
    model = Unprunable().double()
    with pytest.raises(UsageError, match=r"Unprunable has no layer whose neurons can be removed .*layer_norm"):
        attach(model, sgd(model))


def test_wrapped_and_compiled_models_are_refused():
    model = build(Mlp)
    with pytest.raises(UsageError, match="wrapped in DataParallel, which copies it in every step; use Distr"):
        attach(nn.DataParallel(model), sgd(model))
    with pytest.raises(UsageError, match=r"model is compiled, and .* cannot be watched; give training examples"):
        attach(torch.compile(model, backend="eager"), sgd(model))
    with pytest.raises(UsageError, match=r"model is a function; pass a torch\.nn\.Module"):
        attach(lambda x: x, sgd(model))


def test_example_inputs_that_do_not_fit_are_refused():
    model = build(Mlp)
    with pytest.raises(demp.TraceError, match=r"Mlp does not run on the example inputs \(shapes \[\(8, 5\)\]\)"):
        attach(model, sgd(model), example_inputs=(examples((5,)),))


def test_an_option_of_demp_alone_is_named_as_such():
    model = build(Mlp)
    with pytest.raises(UsageError, match="unknown option 'streams' for random, which is an option of demp alone"):
        demp.methods.create(
            "random", model, sgd(model), example_inputs=(examples(VECTOR),), total_steps=4, streams=True
        )
