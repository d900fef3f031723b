"""Several processes on one sweep: who lives, whose a job is, how long the rest takes."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from demp.sweep import Job, claims, presence, timeleft
from demp.sweep.claims import Claims, alone
from demp.sweep.presence import Presence, here
from demp.train import Observer, TrainingInterrupted


def job(name, number=0, **labels):
    return Job(name=name, work="some:work", arguments={"number": number}, labels=labels)


@pytest.fixture
def leaders(tmp_path):
    """Makes leaders of one folder, and lets them leave."""
    made = []

    def lead():
        one = Presence(tmp_path / "leaders")
        made.append(one)
        return one, Claims(tmp_path / "claims", one)

    yield lead
    for one in made:
        if not one._left.is_set():
            one.leave()


def elsewhere(folder, name="other-123456-1", token="t", age=0.0):
    """The file of a leader on another machine that was last heard of so many seconds ago."""
    file = folder / "leaders" / f"{name}.json"
    file.write_text(json.dumps({"token": token}))
    at = time.time() - age
    os.utime(file, (at, at))
    return file


def test_each_leader_has_a_name_of_its_own_and_a_free_one_is_used_again(leaders, tmp_path):
    (one, _), (two, _) = leaders(), leaders()
    assert (one.name, two.name) == (f"{here()}-1", f"{here()}-2")
    assert one.lives(two.name, two.token) and two.lives(one.name, one.token)
    assert not one.lives(two.name, "an earlier one") and not one.lives("nobody-000000-1", "x")
    old = one.token
    one.leave()
    assert not two.lives(one.name, old)
    three, _ = leaders()
    assert three.name == one.name and two.lives(three.name, three.token) and not two.lives(three.name, old)


def test_a_killed_leader_is_known_dead_at_once_on_its_machine(leaders, tmp_path):
    code = f"""
import pathlib, sys, time
from demp.sweep.presence import Presence
one = Presence(pathlib.Path({str(tmp_path / "leaders")!r}))
print(one.name, one.token, flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    name, token = process.stdout.readline().split()
    mine, _ = leaders()
    assert name == f"{here()}-1" and mine.name == f"{here()}-2" and mine.lives(name, token)
    process.kill()
    process.communicate()
    assert not mine.lives(name, token)


def test_a_leader_elsewhere_lives_while_its_heart_beats(leaders, tmp_path, monkeypatch):
    mine, _ = leaders()
    file = elsewhere(tmp_path, age=presence.SILENT_SECONDS - 60)
    assert mine.lives("other-123456-1", "t") and not mine.lives("other-123456-1", "u")
    elsewhere(tmp_path, age=presence.SILENT_SECONDS + 60)
    assert not mine.lives("other-123456-1", "t")
    file.write_text("")
    assert not mine.lives("other-123456-1", "")
    monkeypatch.setattr(presence, "BEAT_SECONDS", 0.01)
    beating, _ = leaders()
    own = tmp_path / "leaders" / f"{beating.name}.json"
    os.utime(own, (0, 0))
    until = time.monotonic() + 60
    while own.stat().st_mtime == 0 and time.monotonic() < until:
        time.sleep(0.01)
    assert time.time() - own.stat().st_mtime < 60


def test_a_job_is_one_leaders_until_it_lets_go(leaders):
    (_, one), (_, two) = leaders(), leaders()
    assert one.take(job("a")) and one.take(job("a")) and not two.take(job("a"))
    assert not two.take(job("of another name")), "equal jobs are one"
    assert two.take(job("b", 1))
    assert two.owner(job("a")) == one.presence.name and one.owner(job("c", 2)) == ""
    one.release(job("a"))
    assert two.take(job("a")) and two.holds(job("a")) and not one.holds(job("a"))


def test_the_job_of_a_dead_leader_goes_to_exactly_one_other(leaders, tmp_path):
    (first, one), (_, two), (_, three) = leaders(), leaders(), leaders()
    assert one.take(job("a"))
    first.leave()
    assert two.owner(job("a")) == ""
    taken = []
    race = [threading.Thread(target=lambda c=c: taken.append(c.take(job("a")))) for c in (two, three) * 4]
    for thread in race:
        thread.start()
    for thread in race:
        thread.join()
    winner, loser = (two, three) if two.holds(job("a")) else (three, two)
    assert winner.holds(job("a")) and not loser.holds(job("a")) and not one.holds(job("a"))
    assert not loser.take(job("a"))
    one.release(job("a"))  # it wakes up, and must not take the winner's claim away
    assert winner.holds(job("a"))
    winner.release(job("a"))
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_claim_without_words_is_being_written_for_a_while(leaders, tmp_path):
    _, one = leaders()
    file = tmp_path / "claims" / f"{job('a').identity}.1"
    file.write_text("")
    assert not one.take(job("a"))
    old = time.time() - claims.SILENT_SECONDS - 1
    os.utime(file, (old, old))
    assert one.take(job("a"))


def test_only_one_process_is_inside_a_folder_and_waiting_can_be_stopped(tmp_path):
    class Impatient(Observer):
        asked = 0

        def asks_to_stop(self):
            self.asked += 1
            return self.asked == 3

    code = f"""
import pathlib, sys
from demp.sweep.claims import alone
with alone(pathlib.Path({str(tmp_path / "lock")!r})):
    print("in", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    with pytest.raises(TrainingInterrupted, match="stopped before it began"), alone(tmp_path / "lock", [Impatient()]):
        raise AssertionError("inside")
    process.kill()
    process.communicate()
    with alone(tmp_path / "lock"):
        pass


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
    assert timeleft.words(seconds) == words
