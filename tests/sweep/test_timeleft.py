"""How long a sweep will still take."""

import pytest

from demp.experiments.sweep import Job, timeleft


def job(name, number=0, **labels):
    return Job(name=name, work="some:work", arguments={"number": number}, labels=labels)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def ended(job, seconds, **more):
    return {"status": "done", "labels": job.labels, "seconds": seconds, **more}


def test_time_left_is_unknown_until_something_was_measured():
    clock = Clock()
    left = timeleft.TimeLeft(1, clock=clock)
    a, b, c = (job(name, setting=name) for name in "abc")
    assert left.left([], [a, b]) is None and left.left([], []) == 0
    left.begins(a)
    clock.now = 10.0
    assert left.left([a], [b]) is None
    left.steps(a, 0, 100)  # ten seconds of start-up
    assert left.left([a], [b]) is None
    clock.now = 20.0
    left.steps(a, 10, 100)
    assert left.left([a], []) == pytest.approx(90)
    assert left.left([a], [b, c]) == pytest.approx(90 + 2 * (20 + 90))
    left.ends(a, ended(a, 50.0))
    assert left.left([], [b, c]) == 100
    left.ends(b, ended(b, 1.0, resumed=True))
    left.ends(c, {**ended(c, 1.0), "status": "failed"})
    assert left.left([], [b]) == 50, "what was resumed or failed says nothing about a whole job"


def test_the_first_steps_are_no_pace():
    clock = Clock()
    left, a, b = timeleft.TimeLeft(1, clock=clock), job("a", setting=1), job("b", setting=2)
    left.begins(a)
    left.steps(a, 0, 1000)
    clock.now = 60.0
    left.steps(a, 1, 1000)
    assert left.left([a], [b]) is None
    clock.now = 80.0
    left.steps(a, 20, 1000)
    assert left.left([a], []) == pytest.approx(80 * 49)
    known = timeleft.TimeLeft(1, [ended(a, 300.0)], clock)
    known.begins(a)
    known.steps(a, 0, 1000)
    clock.now += 60
    known.steps(a, 1, 1000)
    assert known.left([a], []) == 240, "its like says more than one step"


def test_a_job_takes_as_long_as_its_like_and_places_share_the_work():
    clock = Clock()
    big, small, other = (job(name, seed=0, setting=name) for name in ("big", "small", "other"))
    known = [ended(big, 100.0), ended(small, 10.0)]
    again = [job(f"{name}{seed}", seed=seed, setting=name) for name, seed in (("big", 1), ("small", 1), ("small", 2))]
    one, two = (timeleft.TimeLeft(slots, known, clock) for slots in (1, 2))
    assert one.left([], again) == 120 and two.left([], again) == 100
    assert one.left([], [other]) == 55
    one.begins(again[0])
    clock.now = 30.0
    assert one.left([again[0]], again[1:]) == 70 + 20, "work without steps goes by its like"
    clock.now = 500.0
    assert one.left([again[0]], []) == 0
    one.ends(again[0], ended(again[0], 40.0))
    assert one.left([], [big, other]) == 40 + 40, "what this process measured comes first"


def test_a_resumed_run_goes_by_the_pace_of_the_rest():
    clock = Clock()
    left, a, b = timeleft.TimeLeft(1, clock=clock), job("a", setting=1), job("b", setting=2)
    left.begins(a)
    left.steps(a, 90, 100)
    clock.now = 5.0
    left.steps(a, 95, 100)
    assert left.left([a], []) == 5
    assert left.left([a], [b]) is None, "half a run says nothing about a whole one"
    near = timeleft.TimeLeft(1, [ended(a, 300.0)], clock)
    near.begins(a)
    near.steps(a, 990, 1000)
    clock.now += 2.0
    near.steps(a, 992, 1000)
    assert near.left([a], []) == 8, "two of ten steps are a pace, however long the whole run was"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "time left unknown"), (0.2, "about 1 s left"), (89, "about 89 s left"), (300, "about 5 min left"),
        (7200, "about 2.0 h left"), (10 * 86400, "about 10.0 days left"),
    ],
)  # fmt: skip
def test_time_left_in_words(seconds, words):
    assert timeleft.message(seconds) == words
