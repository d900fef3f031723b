"""What a value may be: choices that stand in the type of a field, shares, numbers."""

import math
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, Literal, get_args

import pytest

import demp
from demp import methods
from demp.errors import UsageError
from demp.files.checks import check_above, check_choices, check_portion, choices_of, literals
from demp.files.schema import build
from demp.importance.gates import Scoring
from demp.methods import Requirements
from demp.regularization.penalties import Penalty
from demp.regularization.schedules import OneCycle, ScheduleName, make

Colour = Literal["red", "green"]


@dataclass(frozen=True)
class Paint:
    colour: Colour = "red"
    second: Colour | None = None
    third: Literal[Colour, "blue"] = "blue"
    layers: Literal[1, 2] = 1
    name: str = "pink"
    sizes: tuple[int, ...] = ()
    stripes: tuple[Colour, ...] = ()
    spots: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Wider(Paint):
    colour: Literal["red", "green", "grey"] = "grey"


def test_the_choices_are_those_of_the_annotation():
    two = ("red", "green")
    expected = {"colour": two, "second": (*two, None), "third": (*two, "blue"), "layers": (1, 2), "stripes": two}
    assert choices_of(Paint) == expected
    assert choices_of(Wider) == {**expected, "colour": ("red", "green", "grey")}
    assert literals(int | None) == literals(Colour | int) == literals(str) == ()


def test_a_near_miss_gets_a_suggestion_and_none_is_no_word():
    check_choices(Paint(second="green"))
    for values, message in (
        (Paint(colour="gren"), "colour is 'gren'; choose one of red, green; did you mean 'green'?"),  # pyright: ignore
        (Paint(second=["red"]), "second is ['red']; choose one of red, green; did you mean 'red'?"),  # pyright: ignore
        (Paint(layers=3), "layers is 3; choose one of 1, 2"),  # pyright: ignore
    ):
        with pytest.raises(UsageError) as refused:
            check_choices(values)
        assert str(refused.value) == message
    with pytest.raises(UsageError, match="paint third is 'x'; choose one of red, green, blue"):
        check_choices(Paint(third="x"), "paint")  # pyright: ignore
    with pytest.raises(UsageError, match=r"^wall\.paint\.stripes is 'gren'; choose one of red, green; did you mean"):
        check_choices(Paint(stripes=("red", "gren")), "wall.paint.")  # pyright: ignore


def test_a_config_file_gets_the_same_sentence():
    with pytest.raises(UsageError, match=r"^wall\.colour is 'gren'; choose one of red, green; did you mean 'green'\?$"):
        build(Paint, {"colour": "gren"}, "wall")
    with pytest.raises(UsageError, match=r"^wall\.layers is 3; choose one of 1, 2$"):
        build(Paint, {"layers": 3}, "wall")


def test_types_that_only_a_type_checker_knows_do_no_harm():
    kind = make_dataclass("Mine", [("colour", Colour, "red"), ("other", "Unknown", None)])
    assert choices_of(kind) == {"colour": ("red", "green")}


def choices_in(kind: type) -> list[tuple[str, Any]]:
    return [(entry.name, entry.default) for entry in fields(kind) if literals(entry.type)]


@pytest.mark.parametrize("name", [*methods.names(), "demp+rigl"])
def test_every_method_refuses_a_word_that_is_no_choice(name: str):
    kind = methods.config_class(name)
    for field_name, default in choices_in(kind):
        assert default in choices_of(kind)[field_name]
        with pytest.raises(UsageError, match=f"^{field_name} is 'zzz'; choose one of "):
            kind(**{field_name: "zzz"})
    plain = {entry.name for entry in fields(kind) if entry.type is str}
    assert plain <= {"like"}, "a text that is one of several is a Literal"


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: demp.Criterion(kind="exct"), "criterion kind is 'exct'; .*; did you mean 'exact'"),
        (lambda: Penalty("laso", 1.0), "penalty kind is 'laso'; .*; did you mean 'lasso'"),
        (lambda: Penalty("lasso", 1.0, "scale"), "penalty on is 'scale'; .*; did you mean 'scales'"),
        (lambda: Scoring(kind="gate-flw"), "scoring kind is 'gate-flw'; .*; did you mean 'gate-flow'"),
        (lambda: Scoring(at="norms"), "scoring at is 'norms'; .*; did you mean 'norm'"),
        (lambda: OneCycle(rise="linar"), "schedule rise is 'linar'; .*; did you mean 'linear'"),
        (lambda: make("warmup"), "schedule is 'warmup'; .*; did you mean 'warm-up'"),
        (lambda: Requirements(penalty_in="gradients"), "requirement penalty_in is 'gradients'; .*'gradient'"),
        (lambda: Requirements(collect="batch"), "requirement collect is 'batch'; .*; did you mean 'batches'"),
    ],
)
def test_values_of_the_core_are_refused_alike(make_it, message: str):
    with pytest.raises(UsageError, match=message):
        make_it()


def test_every_schedule_can_be_made():
    for name in get_args(ScheduleName):
        assert make(name)(0, 10) >= 0


def test_shares_and_numbers():
    check_portion("share", 0.0)
    check_portion("share", 1.0)
    check_above("rate", 1e-9)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match=r"share is .*; give a share of the run in \[0, 1\]"):
            check_portion("share", share, "a share of the run")
    for number in (0.0, math.inf, math.nan):
        with pytest.raises(UsageError, match=r"rate is .*; give a number above 0"):
            check_above("rate", number)
