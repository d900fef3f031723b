"""Choices of the trainer's config: one list each, in the type, and one sentence for any other word."""

from dataclasses import fields, is_dataclass
from typing import Any, get_args

import pytest

from demp import recipes
from demp.cli import main
from demp.errors import UsageError
from demp.experiments.studies.small_mlp import MOVES, Regime
from demp.files.checks import choices_of
from demp.files.schema import nested
from demp.train import TrainConfig
from demp.train.choices import Activation, NoiseKeeps, OptimizerName, Precision, SinkName
from demp.train.models import ACTIVATIONS
from demp.train.run import AUTOCAST
from demp.train.sinks import SINKS


def choices(kind: Any, prefix: str = "") -> dict[str, tuple[type, tuple[str, ...]]]:
    """Dotted key -> the part of the config that has the field, and its words."""
    found = {f"{prefix}{name}": (kind, words) for name, words in choices_of(kind).items()}
    for entry in fields(kind):
        if is_dataclass(entry.type):
            found |= choices(entry.type, f"{prefix}{entry.name}.")
    return found


CHOICES = choices(TrainConfig)


def test_every_choice_of_the_config_is_in_its_type():
    assert {key: words[:2] for key, (_, words) in CHOICES.items()} == {
        "data.augment.crop": ("none", "pad"),
        "data.augment.padding_mode": ("reflect", "zeros"),
        "data.normalize": ("dataset", "image"),
        "optimizer.name": ("adam", "adamw"),
        "schedule.name": ("constant", "step"),
        "monitor.criterion": ("auto", "paper"),
        "precision": ("fp32", "bf16"),
        "sinks": ("tensorboard", "wandb"),
    }


@pytest.mark.parametrize("key", CHOICES)
def test_another_word_gets_the_same_sentence_everywhere(key: str, tmp_path, capsys):
    kind, words = CHOICES[key]
    wrong = f"{words[-1]}x"
    sentence = f"{key} is {wrong!r}; choose one of {', '.join(words)}; did you mean {words[-1]!r}?"
    value: Any = [wrong] if key == "sinks" else wrong
    steps = {"steps": 1} if kind is TrainConfig else {}
    makes = [
        lambda: kind(**steps, **{key.rpartition(".")[2]: tuple(value) if key == "sinks" else value}),
        lambda: TrainConfig.from_dict({"steps": 1, **nested({key: value})}),
        lambda: TrainConfig(steps=1).merged(nested({key: value})),
    ]
    for make in makes:
        with pytest.raises(UsageError) as refused:
            make()
        assert str(refused.value) == sentence
    file = tmp_path / "config.toml"
    file.write_text(f"{key} = {value!r}\n")
    for arguments in (["--config", str(file)], ["--set", f"{key}={value!r}"]):
        assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 2
        assert capsys.readouterr().err == f"demp: {sentence}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--optimizer", OptimizerName),
        ("--precision", Precision),
        ("--sink", SinkName),
        ("--activation", Activation),
        ("--noise-keeps", NoiseKeeps),
    ],
)
def test_a_flag_says_its_choices_and_refuses_others_in_one_sentence(flag: str, words: Any, tmp_path, capsys):
    assert main(["train", "--help"]) == 0
    _, found, rest = capsys.readouterr().out.partition(f"{flag} ")
    assert found and all(word in rest.partition("│")[0] for word in get_args(words))
    wrong = f"{get_args(words)[0]}x"
    assert main(["train", "--model", "mlp", "--steps", "1", flag, wrong, "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert f" is {wrong!r}; choose one of {', '.join(get_args(words))}; did you mean" in err
    assert err.count("\n") == 1 and not (tmp_path / "run").exists()


def test_recipes_refuse_other_words_also_where_they_do_not_need_them():
    for wishes, message in (
        ({"noise_keeps": "rat", "epochs": 1.0}, "noise_keeps is 'rat'; choose one of rate, displacement; did you mean"),
        ({"optimizer": "sdgm"}, "optimizer is 'sdgm'; choose one of adam, adamw, sgdm, sgdw; did you mean 'sgdm'"),
    ):
        with pytest.raises(UsageError, match=message):
            recipes.get("plain", **wishes)


def test_what_is_looked_up_by_a_word_knows_every_word():
    assert tuple(ACTIVATIONS) == get_args(Activation)
    assert tuple(SINKS) == get_args(SinkName)
    assert ("fp32", *AUTOCAST) == get_args(Precision)
    assert set(recipes.PAPER_RATES) == set(get_args(OptimizerName))
    assert set(MOVES) == set(get_args(Regime))
