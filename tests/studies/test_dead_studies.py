"""The studies of dead neurons: their plans, and claims that numbers can contradict."""

import pytest
from handmade import by_sentence, made

from demp.experiments import studies
from demp.experiments.studies.dead import SHARE, WHOLE
from demp.experiments.studies.fig9 import RATES

STEPS = 1000
POINTS = [step * STEPS / 40 for step in range(41)]


def curve(end, *, early=0.8):
    """A share that is at ``early`` of its end after a quarter of the steps."""
    return [[step, end * min(1.0, early + step / STEPS) if step >= STEPS / 4 else 0.0] for step in POINTS]


def verdicts(name, change, scale="cpu"):
    study = studies.find(name)
    return study.claims(made(study, scale, change))


def test_plans_share_runs_and_look_as_the_paper_does():
    fig1, fig8, fig12 = (studies.find(name).plan("paper", 1) for name in ("fig1", "fig8", "fig12"))
    assert {job.identity for job in fig12} < {job.identity for job in fig8}
    monitors = [job.arguments["config"]["monitor"] for job in fig1]
    assert all(m["criterion"] == "epsilon" and m["eps"] == 0.01 and not m["relative"] for m in monitors)
    assert all(job.arguments["config"]["method"]["name"] == "dense" for job in fig1)
    assert {(j.labels["rate"], j.labels["activation"]) for j in fig1} == {
        (rate, name) for rate in (0.05, 0.01) for name in ("relu", "leaky_relu", "silu")
    }
    for job in fig8:
        config = job.arguments["config"]
        assert config["method"]["options"]["dynamic"] is False and config["monitor"]["examples"] == 512
        assert config["monitor"]["whole_every_steps"] % config["monitor"]["every_steps"] == 0 < config["steps"]
        assert 30 <= config["steps"] // config["monitor"]["whole_every_steps"] <= 45
    assert {job.arguments["config"]["optimizer"]["eps"] for job in studies.find("fig11").plan("paper", 1)} == {
        1e-10, 1e-9, 1e-8, 1e-6, 1e-4,
    }  # fmt: skip
    short = [job for job in studies.find("fig10").plan("paper", 1) if job.labels["panel"] != "width"]
    assert {job.arguments["config"]["steps"] for job in short} == {15_626} and len(short) == 9


def test_fig9_at_paper_scale_takes_the_whole_mean_gradient_off():
    paper, cpu = (studies.find("fig9").plan(scale, 3) for scale in ("paper", "cpu"))
    assert len(paper) == len(cpu) == 4 * 5 * 3
    for one, other in zip(paper, cpu, strict=True):
        own, near = dict(one.arguments), dict(other.arguments)
        assert (own.pop("full"), near.pop("full")) == (0, 64 if own["regime"] == "sgd-noise" else 0)
        assert own == near
        assert (own["pictures"], own["hidden"], own["steps"], own["batch"]) == (10_000, [100, 300], 30_000, 1)
    assert {job.arguments["rate"] for job in paper} == set(RATES)


def walk(labels, dead):
    points = [[step, dead * min(1.0, step / 10_000)] for step in range(0, 30_001, 500)]
    return {"dead": dead, "dead/1": 0, "dead/2": dead, "diverged_at": None,
            "series": {"dead": points}}  # fmt: skip


def test_fig9_holds_in_the_papers_numbers_and_not_in_others():
    paper = {"sgd-noise": 3000, "sgd": 4000, "gaussian-asymmetric": 200, "gaussian-symmetric": 50}
    claims = verdicts("fig9", lambda labels: walk(labels, paper[labels["regime"]] * labels["rate"]))
    assert [claim.holds for claim in claims] == [True] * 5
    even = verdicts("fig9", lambda labels: walk(labels, 40))
    assert by_sentence(even, "live weights alone").holds is False
    assert by_sentence(even, "far fewer").holds is False
    assert by_sentence(even, "higher learning rate").holds is False
    part = verdicts("fig9", lambda labels: None if labels["rate"] == 0.1 else walk(labels, 40))
    assert {claim.holds for claim in part} == {None}
    none = verdicts("fig9", lambda labels: walk(labels, 0))
    assert by_sentence(none, "begins with none").holds is False


def test_fig9_says_which_walks_diverged():
    def change(labels):
        early = {"diverged_at": 500} if labels["regime"] == "sgd-noise" and labels["rate"] > 0.05 else {}
        return {**walk(labels, 10), **early}

    study = studies.find("fig9")
    records = [{**record, "accuracy": 0.1} for record in made(study, "cpu", change)]
    assert "(2 of 5 walks diverged, counted before)" in by_sentence(study.claims(records), "begins with none").ours
    rows = study.table(records, "cpu").rows
    assert [row[-1] for row in rows if row[0].startswith("noise")].count("500") == 2


def test_fig1_claims():
    def paper(labels):
        return {"steps": STEPS, "series": {SHARE: curve(0.3 if labels["rate"] == 0.05 else 0.1)}}

    assert [claim.holds for claim in verdicts("fig1", paper)] == [True] * 3
    late = verdicts("fig1", lambda labels: {"steps": STEPS, "series": {SHARE: curve(0.3, early=-0.2)}})
    assert [claim.holds for claim in late] == [True, False, False]
    part = verdicts("fig1", lambda labels: paper(labels) if labels["rate"] == 0.05 else None)
    assert {claim.holds for claim in part} == {None}


def overlap(value, still):
    series = {"dead/overlap": value, "dead/still": still, SHARE: 0.2, WHOLE: 0.195}
    return {"steps": STEPS, "series": {name: [[step, v] for step in POINTS] for name, v in series.items()}}


def test_fig8_claims():
    paper = {"Adam": overlap(0.999, 0.99), "SGDM": overlap(0.8, 0.75)}
    assert [c.holds for c in verdicts("fig8", lambda labels: paper[labels["optimizer"]])] == [True] * 3
    assert [c.holds for c in verdicts("fig8", lambda labels: overlap(0.98, 0.4))] == [False] * 3
    nobody = {"steps": STEPS, "series": {SHARE: [[0, 0.0], [STEPS, 0.0]], WHOLE: [[0, 0.0], [STEPS, 0.0]]}}
    assert [c.holds for c in verdicts("fig8", lambda labels: nobody)] == [None] * 3


def test_fig12_claims():
    assert [c.holds for c in verdicts("fig12", lambda labels: overlap(1, 1))] == [True, True]
    apart = overlap(1, 1)
    apart["series"][WHOLE] = [[step, 0.1] for step in POINTS]
    claims = verdicts("fig12", lambda labels: apart)
    assert [c.holds for c in claims] == [False, False] and "10.00 %" in claims[0].ours


def test_fig11_claims():
    def share(value):
        return {"steps": STEPS, "series": {SHARE: [[0, 0.0], [STEPS, value]]}}

    def paper(labels):
        return share({1e-10: 0.05, 1e-8: 0.02, 1e-4: 0.0}[labels["eps"]] * (2.4 if labels["rate"] == 0.01 else 1))

    assert [c.holds for c in verdicts("fig11", paper)] == [True, True]
    assert [c.holds for c in verdicts("fig11", lambda labels: share(0.1))] == [False, False]
    assert [c.holds for c in verdicts("fig11", lambda labels: share(0.0))] == [False, False]


def test_fig10_claims():
    def paper(labels):
        wide = labels["panel"] == "width"
        value = labels["stem"] / 100 if wide else labels["rate"] * 2 + 1 / labels["batch"]
        return {"steps": STEPS, "series": {SHARE: [[0, 0.0], [STEPS, value]]}}

    assert [c.holds for c in verdicts("fig10", paper)] == [True] * 3
    study = studies.find("fig10")
    records = made(study, "cpu", paper)
    base = 0.05 * 2 + 1 / 128
    rates = [(rate * 2 + 1 / 128) / base for rate in (0.01, 0.05, 0.1)]
    batches = [(0.1 + 1 / batch) / base for batch in (16, 128, 256)]
    shown = [[bar.get_height() for bar in axes.patches] for axes in study.figure(records, "cpu").axes[1:]]
    assert shown == [pytest.approx(rates), pytest.approx(batches)]
    assert {row[1]: row[4] for row in study.table(records, "cpu").rows if row[4] != "–"} == {
        **{f"rate {rate:g}, batch 128": f"{ratio:.2f}" for rate, ratio in zip((0.01, 0.05, 0.1), rates, strict=True)},
        **{f"rate 0.05, batch {batch}": f"{ratio:.2f}" for batch, ratio in zip((16, 128, 256), batches, strict=True)},
    }
    told = by_sentence(study.claims(records), "higher learning rate").ours
    assert told.endswith(f", {' → '.join(f'{ratio:.2f}' for ratio in rates)} times the base")
    nobody = made(study, "cpu", lambda labels: {"steps": STEPS, "series": {SHARE: [[0, 0.0], [STEPS, 0.0]]}})
    assert by_sentence(study.claims(nobody), "higher learning rate").ours == "0.0 → 0.0 → 0.0 %"
    assert [axes.patches[:] for axes in study.figure(nobody, "cpu").axes[1:]] == [[], []]
    flat = {"steps": STEPS, "series": {SHARE: [[0, 0.0], [STEPS, 0.1]]}}
    assert [c.holds for c in verdicts("fig10", lambda labels: flat)] == [False] * 3


def dying(steps, end, *, early=0.8, drop=0.0):
    """A share at ``early`` of its end after a quarter of the steps, and ``drop`` above it when 80 % are done."""
    looks = [step * steps / 40 for step in range(41)]
    values = [early * end if at < 0.5 * steps else end + drop * (at == 0.8 * steps) for at in looks]
    return {
        "steps": steps,
        "series": {SHARE: [[at, 0.0 if at < steps / 4 else v] for at, v in zip(looks, values, strict=True)]},
    }


def test_dying_early_in_trainings_of_any_length():
    def paper(labels, **more):
        return dying(labels["length"], 0.1 + labels["length"] / 20_000, **more)

    claims = verdicts("lengths", paper)
    assert [claim.holds for claim in claims] == [True] * 6
    assert claims[0].ours == "500 steps: 10.0 % of 12.5 %, 1,000 steps: 12.0 % of 15.0 %, 2,000 steps: 16.0 % of 20.0 %"
    assert (
        claims[1].ours.startswith("500 steps: by at most 0.0 %") and claims[2].ours == "1.60 times in 4 times the steps"
    )
    late = verdicts("lengths", lambda labels: paper(labels, early=0.3, drop=0.03))
    assert [claim.holds for claim in late] == [False, False, True] * 2
    grows = verdicts("lengths", lambda labels: dying(labels["length"], labels["length"] / 4000))
    assert [claim.holds for claim in grows] == [True, True, False] * 2
    nobody = verdicts("lengths", lambda labels: dying(labels["length"], 0.0))
    assert [claim.holds for claim in nobody] == [False, True, None] * 2
    one = verdicts("lengths", lambda labels: paper(labels) if labels["length"] == 500 else None)
    assert {claim.holds for claim in one} == {None}
    study = studies.find("lengths")
    rows = study.table(made(study, "cpu", paper), "cpu").rows
    assert rows[0][:6] == ("Adam", "500", "1", "10.0 %", "12.5 %", "12.5 %")
    for job in study.plan("paper", 1):
        config = job.arguments["config"]
        assert (config["method"]["name"], config["steps"]) == ("dense", job.labels["length"])
        assert config["optimizer"]["lr"] == (0.05 if job.labels["optimizer"] == "Adam" else 0.5)


def test_appendix_b_is_wrong_where_a_count_is_far_off():
    def change(labels, off=0.5):
        if labels["walk"] == "absorbing":
            return {"shares": [0.9, 0.3], "expected": [0.9, 0.3], "deviations": [off, 0.1]}
        return {"mu": -0.1, "growth": -0.1, "deviations": [0.2, off], "inside": [0.95]}

    good, bad = (verdicts("theory", lambda labels, o=off: change(labels, o)) for off in (0.5, 9.0))
    for words in ("Prop. B.1", "grows by mu"):
        assert (by_sentence(good, words).holds, by_sentence(bad, words).holds) == (True, False)
    assert by_sentence(good, "Lemma B.3").holds is False  # what is below the edge must grow
    assert by_sentence(good, "smaller start").holds is False


@pytest.mark.parametrize("name", ["fig1", "fig8", "fig9", "fig10", "fig11", "fig12", "lengths", "theory"])
def test_without_a_run_nothing_holds_and_nothing_breaks(name):
    claims = studies.find(name).claims([])
    assert claims and {claim.holds for claim in claims} == {None}
