import math
import tomllib

import pytest

from demp import methods, recipes
from demp.errors import UsageError
from demp.experiments.studies.grids import STRENGTHS
from demp.train import TrainConfig
from demp.train.optim import lr_at
from demp.train.scale import MOST_SGD_STRENGTH

PAPER = [name for name in recipes.names() if name not in ("plain", "digits")]


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_a_config_that_survives_toml(name):
    config = recipes.get(name)
    assert config.recipe == name
    assert TrainConfig.from_dict(tomllib.loads(config.to_toml())) == config
    assert recipes.summary(name)


@pytest.mark.parametrize(
    ("name", "steps", "epochs", "examples"),
    [
        ("resnet18-cifar10", 97_656, 250, 50_000),
        ("vgg16-cifar10", 15_625, 80, 50_000),
        ("resnet50-imagenet", 500_456, 100, 1_281_167),
        ("vit-b16-imagenet", 46_918, 150, 1_281_167),
    ],
)
def test_paper_scale(name, steps, epochs, examples):
    config = recipes.get(name)
    assert config.steps == steps == round(epochs * examples / config.batch_size)
    assert config.model.width == 1.0
    assert config.method.options["peak_noise_std"] == 5e-5
    assert recipes.get(name, epochs=epochs) == config


@pytest.mark.parametrize("name", PAPER)
def test_what_a_shorter_run_keeps(name):
    paper, short = recipes.get(name), recipes.get(name, steps=400, width=0.25)
    assert (short.steps, short.model.width) == (400, 0.25)
    assert short.method.options["peak_noise_std"] == paper.method.options["peak_noise_std"] == 5e-5
    far = recipes.get(name, steps=400, width=0.25, noise_keeps="displacement")
    displacement = [config.method.options["peak_noise_std"] * math.sqrt(config.steps) for config in (paper, far)]
    assert displacement[0] == pytest.approx(displacement[1])
    assert far.changes(short) == [change for change in far.changes(short) if "peak_noise_std" in change]
    assert short.method.options["period"] == 20
    assert short.method.options["peak_strength"] == paper.method.options["peak_strength"]
    assert short.schedule == paper.schedule
    assert short.optimizer == paper.optimizer
    assert short.data == paper.data


def test_the_rates_of_resnet18():
    config = recipes.get("resnet18-cifar10")
    per_epoch = config.steps / 250
    rates = [
        lr_at(config.schedule, config.optimizer.lr, round(epoch * per_epoch), config.steps)
        for epoch in (0, 76, 78, 153, 155, 230, 232)
    ]
    assert rates == pytest.approx([5e-3, 5e-3, 1e-3, 1e-3, 2e-4, 2e-4, 4e-5])


def rates_and_noise(**how) -> tuple[list[float], list[float]]:
    """Of ResNet-18 with Adam, over its steps."""
    config = recipes.get("resnet18-cifar10", **how)
    demp = methods.find("demp")(methods.config_class("demp")(**config.method.options), config.steps)
    steps = range(0, config.steps, max(1, config.steps // 2000))
    rates = [lr_at(config.schedule, config.optimizer.lr, step, config.steps) for step in steps]
    return rates, [demp.noise_std(step) for step in steps]


@pytest.mark.parametrize(
    ("how", "sum_of_rates", "most_noise"),
    [
        ({}, 186.8, 0.093),
        ({"steps": 2000}, 3.83, 0.093),
        ({"steps": 2000, "noise_keeps": "displacement"}, 3.83, 0.648),
        ({"steps": 800, "noise_keeps": "displacement"}, 1.53, 1.024),
    ],
)
def test_what_the_recipes_say_of_adam_is_so(how, sum_of_rates, most_noise):
    rates, noise = rates_and_noise(**how)
    steps = recipes.get("resnet18-cifar10", **how).steps
    assert steps * sum(rates) / len(rates) == pytest.approx(sum_of_rates, rel=5e-3)
    assert max(n / rate for n, rate in zip(noise, rates, strict=True)) == pytest.approx(most_noise, rel=1e-2)


def test_the_digits_and_plain_follow_the_paper_in_their_own_way():
    assert recipes.get("plain", steps=500).method.options["peak_noise_std"] == 5e-5
    far = recipes.get("plain", steps=500, noise_keeps="displacement").method.options["peak_noise_std"]
    assert far == pytest.approx(5e-5 * math.sqrt(97_656 / 500))
    digits = [
        recipes.get("digits", steps=500, **how).method.options["peak_noise_std"]
        for how in ({}, {"noise_keeps": "rate"})
    ]
    assert digits == pytest.approx([2 * far, 1e-4])


def test_the_rates_of_vit():
    config = recipes.get("vit-b16-imagenet")
    at = {epoch: round(epoch * config.steps / 150) for epoch in (0, 16, 83, 150)}
    rates = {e: lr_at(config.schedule, config.optimizer.lr, s, config.steps) for e, s in at.items()}
    assert rates == pytest.approx({0: 9.9e-5, 16: 3e-3, 83: 1.5e-3, 150: 0.0}, abs=1e-6)
    assert config.accumulate == 16 and config.batch_size // config.accumulate == 256


@pytest.mark.parametrize(
    ("name", "optimizer", "lr"),
    [
        ("resnet18-cifar10", "adamw", 0.005),
        ("resnet18-cifar10", "sgdm", 0.1),
        ("vgg16-cifar10", "sgdw", 0.1),
        ("resnet50-imagenet", "sgdm", 0.1),
        ("vit-b16-imagenet", "adamw", 0.003),
    ],
)
def test_optimizers(name, optimizer, lr):
    config = recipes.get(name, optimizer=optimizer)
    assert (config.optimizer.name, config.optimizer.lr) == (optimizer, lr)


def test_strength_grows_with_sgd_only_and_within_bounds():
    def strength(optimizer, steps=None):
        config = recipes.get("resnet18-cifar10", optimizer=optimizer, steps=steps)
        return config.method.options["peak_strength"]

    assert strength("adamw", 4000) == strength("adamw")
    assert strength("sgdw", 9766) == pytest.approx(10 * strength("sgdw"), rel=1e-3)
    assert strength("sgdw", 100) == MOST_SGD_STRENGTH


def test_vgg_is_the_authors_network_and_the_strengths_of_resnet50_are_in_the_grids_of_the_tables():
    assert recipes.get("vgg16-cifar10").model.options == {"last_conv": 1024}
    for optimizer in ("adamw", "sgdw"):
        strength = recipes.get("resnet50-imagenet", optimizer=optimizer).method.options["peak_strength"]
        assert strength in STRENGTHS["paper", "resnet50", optimizer]


def test_table_1_and_table_2_use_their_own_penalties():
    assert recipes.get("resnet50-imagenet").method.options["penalty"] == "l2"
    sgd = recipes.get("resnet50-imagenet", optimizer="sgdm")
    assert sgd.method.options["penalty"] == "lasso"


@pytest.mark.parametrize("name", recipes.names())
def test_options_are_those_of_the_method(name):
    config = recipes.get(name)
    methods.config_class(config.method.name)(**config.method.options)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet18-cifar", {}, "did you mean 'resnet18-cifar10'"),
        ("nothing", {}, "recipes: plain, digits"),
        ("digits", {"optimizer": "sgd"}, "optimizer is 'sgd'; choose one of adam"),
        ("vit-b16-imagenet", {"optimizer": "sgdm"}, "optimizer of this recipe is 'sgdm'; choose one of adamw, adam"),
        ("digits", {"steps": 5, "epochs": 1.0}, "give one of them"),
        ("digits", {"steps": -5}, "give a number above 0"),
        ("plain", {"steps": 5, "epochs": 1.0}, "give one of them"),
        ("resnet18-cifar10", {"noise_keeps": "rates"}, "noise_keeps is 'rates'; choose one of rate, displacement"),
    ],
)
def test_what_a_recipe_cannot_do(name, arguments, message):
    with pytest.raises(UsageError, match=message):
        recipes.get(name, **arguments)


def test_underscores_are_as_good_as_dashes():
    assert recipes.get("resnet18_cifar10") == recipes.get("resnet18-cifar10")


def test_plain_counts_epochs_of_whatever_data():
    config = recipes.get("plain", epochs=3.0)
    assert (config.epochs, config.steps, config.method.options) == (3.0, 0, {})
