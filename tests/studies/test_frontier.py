"""Points, margins at equal sparsity and the claims that rest on them, on hand-made records."""

import pytest
from handmade import by_sentence, made, record

from demp.experiments import studies
from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import Point, along, beats, margin, points, ties


def point(line, weights, accuracy, panel="Adam"):
    run = {"eval/top1": accuracy, "weight_sparsity": weights, "masked_share": 0.0, "neuron_sparsity": weights}
    return Point(panel, line, f"{weights}", (run,))


def test_points_gather_the_seeds_of_a_setting():
    study = studies.find("fig7")
    accuracies = {0: 0.5, 1: 0.7, 2: 0.9}
    records = made(
        study, "smoke", lambda labels: {"accuracy": accuracies[labels["seed"]], "weights": 0.4, "masked": 0.1}, 3
    )
    found = points(records)
    assert len(found) == 6 and all(len(p.runs) == 3 for p in found)
    assert [p.accuracy for p in found] == pytest.approx([0.7] * 6)
    assert found[0].std("eval/top1") == pytest.approx(0.2)
    assert found[0].weights == pytest.approx(0.5) and found[0].mean("weight_sparsity") == pytest.approx(0.4)
    rows = study.table(records, "smoke").rows
    assert rows[0][:6] == ("Adam", "Dense", "–", "3", "70.00 ± 20.00 %", "0.0 %")
    assert rows[0][6:] == ("40.0 %", "10.0 %", "0.60", "0.50", "1.00")


def test_a_line_is_straight_between_its_points_and_nothing_beyond():
    line = [point("a", 0.9, 0.4), point("a", 0.5, 0.8)]
    assert along(line, 0.7) == pytest.approx(0.6)
    assert along(line, 0.5) == 0.8 and along(line, 0.9) == 0.4
    assert along(line, 0.45) is None and along(line, 0.95) is None
    assert along(line[:1], 0.9) == 0.4 and along(line[:1], 0.8) is None


def test_margins_are_taken_where_both_lines_are():
    ours = [point("a", 0.6, 0.8), point("a", 1.0, 0.4)]
    theirs = [point("b", 0.5, 0.7), point("b", 0.8, 0.5)]
    found = margin(ours, theirs)
    assert found.sparsities == (0.6, 0.8)
    assert found.margins == pytest.approx((0.8 - (0.7 - 0.2 / 3), 0.6 - 0.5))
    assert margin(ours, theirs, 0.7).sparsities == (0.8,)
    assert margin(ours, theirs, 0.9) is None
    assert str(margin(ours, theirs, 0.7)) == "+10.0 points at 80 %"
    assert str(found) == "+10.0 to +16.7 points between 60 and 80 % weight sparsity"


def test_to_beat_is_to_beat_all_and_no_answer_without_all():
    found = [point("a", 0.8, 0.8), point("b", 0.8, 0.7), point("c", 0.8, 0.75), point("d", 0.5, 0.9)]
    assert beats(found, "Adam", "a", ["b", "c"], 0.8)[1] is True
    assert beats(found, "Adam", "c", ["a", "b"], 0.8)[1] is False
    assert beats(found, "Adam", "a", ["b", "d"], 0.8)[1] is None
    assert beats(found, "Adam", "c", ["a", "d"], 0.8)[1] is False
    assert beats(found, "SGDM", "a", ["b"], 0.8) == ("", None)
    assert ties(found, "Adam", "a", ["b"], 0.8)[1] is False
    assert ties(found, "Adam", "c", ["a", "b"], 0.8)[1] is False
    assert ties([*found, point("e", 0.8, 0.795)], "Adam", "a", ["b", "e"], 0.8)[1] is True
    assert ties(found, "Adam", "a", ["d"], 0.8)[1] is None


def outcome(ours, theirs, seconds=50.0):
    """Fig. 3 at scale cpu: DemP and EarlyCroP-S at three settings between 80 and 90 % of weights."""

    def change(labels):
        if labels["line"] == "Dense":
            return {"accuracy": 0.8}
        key = next(iter(labels["setting"].values()))
        at = {5e-3: 0.85, 8e-3: 0.85, 2e-3: 0.8, 4e-3: 0.8, 1e-2: 0.9, 1.6e-2: 0.9, 0.55: 0.85, 0.4: 0.8, 0.7: 0.9}[key]
        accuracy = {"DemP": ours, "EarlyCroP-S": theirs}[labels["line"].partition(",")[0]][labels["panel"]]
        neurons = {0.85: 0.6, 0.8: 0.5, 0.9: 0.7}[at]
        return {"accuracy": accuracy, "weights": at, "neurons": neurons, "seconds": seconds}

    return studies.find("fig3").claims(made(studies.find("fig3"), "cpu", change))


def test_fig3_holds_and_does_not_hold():
    claims = outcome({"Adam": 0.795, "SGDM": 0.75}, {"Adam": 0.78, "SGDM": 0.745})
    adam, _, by_neurons, _, speed = claims
    assert [claim.holds for claim in claims] == [True] * 5
    assert "equal neuron sparsity of 55 % and more" in by_neurons.sentence
    assert by_neurons.ours.startswith("over EarlyCroP-S +1.5 points between 60 and 70 % neuron sparsity; over")
    assert adam.paper == "up to 2.25 points over the best other method, in Figs. 3, 15 and Table 1 together"
    assert adam.ours.split("; ") == [
        f"over {line} +1.5 points between 80 and 90 % weight sparsity"
        for line in ("EarlyCroP-S", "EarlyCroP-S, epochs of the data")
    ]
    assert speed.ours == "Adam 2.00 times at 90 %" and speed.paper == "2.45 times"
    assert str(adam).startswith("holds: With Adam, DemP is more accurate than every other structured method")
    claims = outcome({"Adam": 0.795, "SGDM": 0.795}, {"Adam": 0.80, "SGDM": 0.745}, seconds=200.0)
    assert [claim.holds for claim in claims] == [False] * 5
    claims = outcome({"Adam": 0.7, "SGDM": 0.7}, {"Adam": 0.6, "SGDM": 0.7})
    assert [claim.holds for claim in claims] == [True, True, True, True, None]


def test_lines_are_compared_along_either_axis():
    def at(line, weights, neurons, accuracy):
        run = {"eval/top1": accuracy, "weight_sparsity": weights, "masked_share": 0.0, "neuron_sparsity": neurons}
        return Point("Adam", line, f"{weights}", (run,))

    ours = [at("a", 0.8, 0.4, 0.7), at("a", 0.9, 0.6, 0.5)]
    theirs = [at("b", 0.8, 0.5, 0.65), at("b", 0.9, 0.7, 0.54)]
    assert margin(ours, theirs).margins == pytest.approx((0.05, -0.04))
    along_neurons = margin(ours, theirs, axis="neurons")
    assert along_neurons.sparsities == (0.5, 0.6)
    assert along_neurons.margins == pytest.approx((0.6 - 0.65, 0.5 - 0.595))
    assert str(along_neurons) == "-9.5 to -5.0 points between 50 and 60 % neuron sparsity"
    found = [*ours, *theirs, at("c", 0.9, 0.5, 0.4)]
    assert beats(found, "Adam", "b", ["a"], 0.0, "neurons")[1] is True
    assert beats(found, "Adam", "b", ["a"], 0.0)[1] is False
    assert ties(found, "Adam", "b", ["a"], 0.85, "neurons") == ("", None)


FRONTIERS = [
    "fig3",
    "fig4",
    "fig5",
    "fig6",
    "fig7",
    "fig13",
    "fig14",
    "fig15",
    "fig16",
    "controls",
    "decoupled",
    "hybrid",
]


@pytest.mark.parametrize("name", ["fig2", *FRONTIERS])
def test_without_records_every_claim_says_so(name):
    claims = studies.find(name).claims([])
    assert claims and {claim.holds for claim in claims} == {None}
    assert all(claim.ours == "" and claim.paper and str(claim).startswith("not enough data: ") for claim in claims)


def test_fig2_reads_dead_shares():
    def change(labels, sign=1.0):
        strength = labels["setting"]["peak_strength"]
        if labels["panel"] == "noise":
            return {"neurons": 0.1 + sign * 50 * float(labels["line"].removeprefix("σ "))}
        return {"neurons": 0.3 + sign * strength * (20 if labels["line"].endswith("Adam") else 5)}

    study = studies.find("fig2")
    records = made(study, "cpu", change)
    claims = study.claims(records)
    assert [claim.holds for claim in claims] == [True, True, True]
    assert "Lasso(γ), Adam 30 → 34 → 50 %" in claims[0].ours and "L2, SGDM 30 → 31 → 35 %" in claims[0].ours
    assert claims[1].ours.startswith("Lasso(γ) 50 % against 35 %")
    assert "λ 0.008: 15 % against 10 %" in claims[2].ours
    assert [c.holds for c in study.claims(made(study, "cpu", lambda labels: change(labels, -1.0)))] == [False] * 3
    only_adam = [r for r in records if not r["labels"]["line"].endswith("SGDM")]
    assert [claim.holds for claim in study.claims(only_adam)] == [None, None, True]
    assert len(study.table(records, "cpu").rows) == len(records)
    assert len(study.figure(records, "cpu").axes) == 3


def test_fig6_compares_strength_by_strength():
    def change(labels, more=0.1, up=0.0):
        noisy = labels["line"] == "σ 5e-05"
        best = {"σ 5e-05": 0.9, "σ 0": 0.88, "σ 0.0005": 0.87, "σ 0.001": 0.7}.get(labels["line"], 0.9)
        weights = 0.7 if "peak_strength" not in labels["setting"] else 0.6 + 20 * labels["setting"]["peak_strength"]
        if labels["panel"].startswith("ResNet-50"):
            return {"accuracy": 0.5 + up * noisy, "weights": 0.3 + more * noisy}
        return {"accuracy": best, "weights": weights}

    study = studies.find("fig6")
    claims = study.claims(made(study, "cpu", change))
    assert [claim.holds for claim in claims] == [True, True]
    assert "strength 0.008: +10.0 points of weights, +0.0 of accuracy" in claims[1].ours
    for worse in ({"more": -0.1}, {"up": -0.02}):
        assert study.claims(made(study, "cpu", lambda labels, w=worse: change(labels, **w)))[1].holds is False


def test_fig7_and_fig13_and_fig14_have_their_own_comparisons():
    def dynamic(labels, gain):
        during = labels["line"] == "removed while training"
        if labels["line"] == "Dense":
            return {"accuracy": 0.8}
        return {"accuracy": 0.75, "weights": 0.5 + 20 * labels["setting"]["peak_strength"] + gain * during}

    seven = studies.find("fig7")
    for gain, holds in ((0.02, True), (-0.02, False)):
        claims = seven.claims(made(seven, "cpu", lambda labels, g=gain: dynamic(labels, g)))
        assert by_sentence(claims, "With SGDM").holds is holds
    assert by_sentence(claims, "With Adam").holds is True

    thirteen = studies.find("fig13")
    noises = {"live neurons (asymmetric)": 0.7, "all weights (symmetric)": 0.705}
    for other, holds in ((0.705, True), (0.6, False)):
        noises["all weights (symmetric)"] = other
        records = made(thirteen, "cpu", lambda labels: {"accuracy": noises.get(labels["line"], 0.8), "weights": 0.5})
        masks = [claim for claim in thirteen.claims(records) if "noise on live neurons" in claim.sentence]
        assert [claim.holds for claim in masks] == [holds, holds]
    for penalised, holds in ((0.8, True), (0.65, False)):
        noises["DemP: a penalty, noise 5e-05"] = penalised
        records = made(thirteen, "cpu", lambda labels: {"accuracy": noises.get(labels["line"], 0.8), "weights": 0.5})
        penalty = [claim for claim in thirteen.claims(records) if "stronger penalty" in claim.sentence]
        assert [claim.holds for claim in penalty] == [holds, holds]

    fourteen = studies.find("fig14")
    for ours, holds in ((0.3, True), (0.8, False)):
        records = made(
            fourteen,
            "cpu",
            lambda labels, a=ours: {
                "accuracy": a if labels["line"] == "DemP" else 0.5,
                "weights": 0.96,
                "neurons": 0.85,
            },
        )
        claims = fourteen.claims(records)
        assert by_sentence(claims, "beyond 95 % weight").holds is holds
        assert by_sentence(claims, "beyond 80 % neuron").holds is holds
        assert by_sentence(claims, "equal neuron sparsity").holds is not holds
    fewer = [{**record, "neuron_sparsity": 0.5} for record in records]
    assert by_sentence(fourteen.claims(fewer), "beyond 80 % neuron").holds is None


def test_runs_of_other_machines_make_no_speed():
    study = studies.find("fig3")
    jobs = study.plan("smoke")
    records = [record(job, accuracy=0.5, machine=f"machine {n}") for n, job in enumerate(jobs)]
    assert by_sentence(study.claims(records), "trains faster").holds is None


def test_a_claim_reads_as_a_sentence():
    claim = Claim(sentence="A is above B.", paper="2 points", ours="1 point", holds=False)
    assert str(claim) == "does not hold: A is above B. Paper: 2 points. Ours: 1 point."
    assert claim.to_dict()["verdict"] == "does not hold" and claim.to_dict()["holds"] is False


def test_rate_and_batch_size_drive_sparsity_at_a_price():
    study = studies.find("controls")

    def change(labels, price=0.2, sign=1):
        if labels["line"] == "Dense":
            return {"accuracy": 0.9}
        (name, value), *_ = labels["setting"].items()
        if name == "peak_strength":
            return {"accuracy": 0.8, "weights": 0.4 + 20 * value, "neurons": 0.3}
        at = value if name == "lr" else 1 / value
        return {"accuracy": 0.8 - price, "weights": 0.5, "neurons": 0.3 + sign * at}

    claims = study.claims(made(study, "cpu", change))
    assert [claim.holds for claim in claims] == [True] * 6
    assert claims[0].ours == "32.0 → 35.0 % removed"
    assert claims[1].ours == "30.4 → 33.1 % removed"
    other = study.claims(made(study, "cpu", lambda labels: change(labels, -0.1, -1)))
    assert [claim.holds for claim in other] == [False] * 6
    for job in study.plan("cpu", 1):
        config, setting = job.arguments["config"], job.labels["setting"]
        if job.labels["line"] in ("learning rate", "batch size"):
            assert (config["method"]["options"]["peak_strength"], config["method"]["options"]["noise_on"]) == (
                0.0,
                "off",
            )
            rate = setting.get("lr", {"Adam": 0.05, "SGDM": 0.3}[job.labels["panel"]])
            assert (config["optimizer"]["lr"], config["batch_size"]) == (rate, setting.get("batch_size", 128))
            assert config["steps"] == 2000
    ours = {job.identity for job in study.plan("cpu", 1) if job.labels["line"] in ("Dense", "penalty")}
    assert len(ours) == 8 and ours <= {job.identity for job in studies.find("fig3").plan("cpu", 1)}


def test_the_penalty_in_the_loss_removes_more_at_equal_strength():
    study = studies.find("decoupled")

    def change(labels, more=0.1):
        weights = 0.5 + (more if labels["line"] == "in the loss" else 0.0)
        return {"accuracy": 0.8, "weights": 0.0 if labels["line"] == "Dense" else weights}

    claims = study.claims(made(study, "cpu", change))
    assert [claim.holds for claim in claims] == [True] * 2
    strengths = sorted(
        {
            j.labels["setting"]["peak_strength"]
            for j in study.plan("cpu", 1)
            if j.labels["line"] == "in the loss" and j.labels["panel"] == "Adam"
        }
    )
    assert claims[0].ours == "; ".join(f"{value:g}: 60.0 against 50.0 %" for value in strengths)
    assert [c.holds for c in study.claims(made(study, "cpu", lambda labels: change(labels, -0.1)))] == [False] * 2
    assert [c.holds for c in study.claims([])] == [None] * 2
    assert {j.identity for j in study.plan("cpu", 1) if j.labels["line"] in ("Dense", "in the loss")} <= {
        j.identity for j in studies.find("fig3").plan("cpu", 1)
    }


def test_a_combination_is_compared_with_both_of_its_parts():
    study = studies.find("hybrid")

    def change(labels, more=0.1, flops=40):
        if labels["line"] == "Dense":
            return {"accuracy": 0.9}
        if labels["line"] == "DemP":
            return {"accuracy": 0.7, "weights": 0.7 + 12 * labels["setting"]["peak_strength"]}
        if labels["line"] == "RigL":
            return {"accuracy": 0.65, "masked": labels["setting"]["weight_sparsity"], "flops": 99}
        return {"accuracy": 0.7 + more, "weights": 0.5, "masked": 0.31, "flops": flops}

    claims = study.claims(made(study, "cpu", change))
    assert [claim.holds for claim in claims] == [True] * 4
    assert claims[1].ours == "DemP + RigL 0.40 to 0.40 against RigL 0.99 to 0.99"
    assert by_sentence(claims, "With SGDM, DemP with masks").ours.startswith(
        "over DemP +10.0 points at 81 %; over RigL"
    )
    worse = study.claims(made(study, "cpu", lambda labels: change(labels, -0.02, 100)))
    assert [claim.holds for claim in worse] == [False] * 4
    alone = made(study, "cpu", lambda labels: None if labels["line"] == "RigL" else change(labels))
    assert [claim.holds for claim in study.claims(alone)] == [None] * 4
    jobs = study.plan("cpu", 1)
    for job in jobs:
        if job.labels["line"] == "DemP + RigL, 50 % masked":
            options = job.arguments["config"]["method"]["options"]
            assert job.labels["method"] == "demp+rigl" and options["weight_sparsity"] == 0.5
            assert options["peak_strength"] == job.labels["setting"]["peak_strength"]
            assert (options["distribution"], options["dense_first"]) == ("uniform", True)
    assert len({job.identity for job in jobs} & {job.identity for job in studies.find("fig16").plan("cpu", 1)}) == 10
