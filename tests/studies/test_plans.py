"""Which jobs the studies plan: shared ones once, fractions of the recipes kept, the paper's settings at its scale."""

import pytest

from demp import recipes
from demp.errors import UsageError
from demp.experiments import studies
from demp.experiments.report.studies import NAMES
from demp.experiments.studies import grids
from demp.experiments.studies.base import SCALES, SEEDS
from demp.experiments.studies.result_store import identity_of
from demp.experiments.studies.training import base, noise
from demp.train import TrainConfig

TRAINING = ("fig2", "fig3", "fig4", "fig5", "fig6", "fig7", "fig13", "fig14", "fig15", "fig16", "fig17")
TABLES = ("table1", "table2", "table3")


def plan(name, scale, seeds=1):
    return studies.find(name).plan(scale, seeds)


def identities(jobs, **labels):
    return {job.identity for job in jobs if labels.items() <= job.labels.items()}


def config(job):
    return TrainConfig.from_dict(job.arguments["config"])


def test_the_registry_holds_the_studies_in_the_papers_order():
    names = studies.names()
    assert {*TRAINING, *TABLES} <= set(names)
    figures = [int(name[3:]) for name in names if name.startswith("fig")]
    assert figures == sorted(figures)
    assert names.index("fig2") < names.index("fig13") < names.index("table1")
    for name in names:
        study = studies.find(name)
        assert study.id == name and study.title and study.section.startswith(("Sec.", "App."))


@pytest.mark.parametrize("spelling", ["fig3", "Fig. 3", "figure3", "FIG-3"])
def test_a_study_answers_to_what_people_write(spelling):
    assert studies.find(spelling).id == "fig3"


def test_a_report_knows_every_study():
    assert all(NAMES.fullmatch(name) for name in studies.names())


def test_an_unknown_study_is_a_suggestion():
    with pytest.raises(UsageError, match="unknown study 'fgi17'; did you mean 'fig17'"):
        studies.find("fgi17")
    with pytest.raises(UsageError, match=r"unknown study 'zzz'; there are fig\d"):
        studies.find("zzz")


def test_bad_scales_and_seeds_are_sentences():
    with pytest.raises(UsageError, match="scale is 'cpus'; choose one of smoke, cpu, paper; did you mean 'cpu'"):
        studies.find("fig3").plan("cpus")
    with pytest.raises(UsageError, match="seeds is 0; give at least 1"):
        studies.find("fig3").plan("cpu", 0)


@pytest.mark.parametrize("scale", SCALES)
def test_one_name_is_one_job_in_the_pool_of_a_scale(scale):
    names = {}
    for name in studies.names():
        for job in studies.find(name).plan(scale, 1):
            assert names.setdefault(job.name, job.identity) == job.identity
            assert job.labels["seed"] == 0


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_studies_share_their_runs(scale):
    dense = identities(plan("fig3", scale), line="Dense")
    ours = identities(plan("fig3", scale), line="DemP")
    assert len(dense) == 2
    for name, line in (("fig4", "One cycle"), ("fig5", "Lasso(γ)"), ("fig7", "removed while training")):
        shared = identities(plan(name, scale), line=line)
        assert identities(plan(name, scale), line="Dense") == dense
        assert shared <= ours and len(shared) == 2 * min(2, len(grids.strengths(scale, "resnet18", "adamw")))
    assert identities(plan("fig16", scale), line="DemP") == ours
    assert identities(plan("fig6", scale), line="σ 5e-05") & ours
    left = identities(plan("fig6", scale), panel="ResNet-18, SGDM") - dense
    assert identities(plan("fig2", scale), panel="noise") == left
    assert {job.identity for job in plan("fig17", scale)} == {job.identity for job in plan("table3", scale)}
    assert not identities(plan("fig15", scale)) & identities(plan("fig3", scale))


def test_seeds_come_one_after_the_other():
    jobs = plan("fig7", "cpu", 3)
    seeds = [job.labels["seed"] for job in jobs]
    assert seeds == sorted(seeds) and set(seeds) == {0, 1, 2}
    assert [job.arguments["config"]["seed"] for job in jobs] == seeds
    assert len(jobs) == 3 * len(plan("fig7", "cpu"))
    assert len(studies.find("fig7").plan("paper")) == SEEDS["paper"] * len(plan("fig7", "paper"))


@pytest.mark.parametrize("network", ["resnet18", "vgg16", "resnet50"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgdw"])
def test_a_cpu_run_keeps_the_fractions_of_the_papers(network, optimizer):
    short, paper = base(network, "cpu", optimizer), base(network, "paper", optimizer)
    assert short.method.options["period"] == round(0.05 * short.steps)
    assert short.method.options.get("span") == paper.method.options.get("span")
    assert short.schedule == paper.schedule and short.optimizer == paper.optimizer
    displacement = [c.method.options["peak_noise_std"] * c.steps**0.5 for c in (short, paper)]
    assert displacement[0] == pytest.approx(displacement[1])
    assert noise(network, short, 5e-5) == short.method.options["peak_noise_std"]
    assert noise(network, short, 1e-4) == pytest.approx(2 * short.method.options["peak_noise_std"])
    assert noise(network, paper, 1e-3) == pytest.approx(1e-3)


def test_at_paper_scale_the_recipes_are_the_papers():
    for job in plan("fig3", "paper"):
        own = config(job)
        recipe = recipes.get("resnet18-cifar10", optimizer=own.optimizer.name)
        assert own.merged({"eval_every_steps": recipe.eval_every_steps}).changes(recipe) == [
            change
            for change in own.merged({"eval_every_steps": recipe.eval_every_steps}).changes(recipe)
            if change.startswith("method.")
        ]
        assert (own.steps, own.batch_size, own.model.width, own.data.name) == (97_656, 128, 1.0, "cifar10")
    targets = [job.labels["setting"] for job in plan("fig3", "paper") if job.labels["line"] == "SNAP"]
    assert sorted(setting["target_neuron_sparsity"] for setting in targets[:9]) == [
        0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9,
    ]  # fmt: skip


def test_every_line_asks_its_method_for_what_its_label_says():
    for name in ("fig3", "fig6", "fig13", "fig16", "table2"):
        for job in plan(name, "cpu"):
            method = config(job).method
            assert method.name == job.labels["method"]
            for option, value in job.labels["setting"].items():
                assert method.options[option] == value
    schedules = {job.labels["line"]: config(job).method.options.get("schedule") for job in plan("fig4", "smoke")}
    assert schedules == {
        "Dense": None,
        "One cycle": "one-cycle",
        "Constant": "constant",
        "Cosine decay": "cosine-decay",
        "Warm-up": "warm-up",
    }
    penalties = {
        job.labels["line"]: (options["penalty"], options["penalty_on"])
        for job in plan("fig5", "smoke")
        if (options := config(job).method.options)
    }
    assert penalties == {
        "Lasso(γ)": ("lasso", "scales"),
        "L2(γ)": ("l2", "scales"),
        "Lasso": ("lasso", "parameters"),
        "L2": ("l2", "parameters"),
    }
    noises = {
        job.labels["line"]: (options["noise_on"], options["live_mask"], options["peak_strength"])
        for job in plan("fig13", "paper")
        if (options := config(job).method.options) and not options["peak_strength"]
    }
    assert noises == {
        "live neurons (asymmetric)": ("live", "neuron-gradient", 0.0),
        "all weights (symmetric)": ("all", "neuron-gradient", 0.0),
        "weights with a gradient": ("live", "weight-gradient", 0.0),
    }
    both = {name: {job.identity for job in plan(name, "cpu")} for name in ("fig3", "fig13")}
    penalised = identities(plan("fig13", "cpu"), line="DemP: a penalty, noise 5e-05")
    assert len(penalised) == 4 and penalised <= both["fig3"]
    assert {config(job).model.activation for job in plan("fig15", "smoke")} == {"leaky_relu"}
    criteria = {job.labels["line"]: config(job).method.options.get("criterion") for job in plan("fig15", "cpu")}
    assert criteria == {"Dense": None, "DemP": "auto", "DemP, sum over examples": "sum", "EarlyCroP-S": None}
    for name in ("fig3", "fig14", "fig15", "table1", "table2"):
        scores = {job.labels["line"]: config(job).method.options.get("score") for job in plan(name, "paper")}
        assert scores["EarlyCroP-S"] == scores["CroPit-S"] == "weight-flow"
        assert scores["EarlyCroP-S, gate flow"] == scores["CroPit-S, gate flow"] == "gate-flow"
    assert {job.labels["line"]: config(job).method.options.get("dynamic") for job in plan("fig7", "smoke")} == {
        "Dense": None,
        "removed while training": True,
        "removed at the end": False,
    }


def test_masks_of_fig16_are_those_of_the_authors_sweep():
    for job in plan("fig16", "paper"):
        method, line = config(job).method, job.labels["line"]
        if line in grids.WEIGHT_METHODS:
            window = (method.options["mask_from"], method.options["mask_until"])
            assert (method.options["distribution"], method.options["dense_first"], window) == (
                "uniform",
                True,
                (0.3, 0.8),
            )
            dropping = [method.options.get(name) for name in ("drop_fraction", "drop_schedule")]
            assert dropping == ([0.3, "constant"] if line in ("RigL", "SET") else [None, None])
    stems = {job.labels["line"]: config(job).method.options.get("dense_first") for job in plan("table2", "paper")}
    assert stems["Mag"] and stems["Sal"] and not stems["RigL (ERK)"] and not stems["SET"]


def test_the_transformers_are_watched_in_three_blocks():
    jobs = {job.labels["line"]: job for job in plan("fig17", "cpu")}
    assert list(jobs) == ["Dense", "DemP", "DemP + ReLU", "DemP, peak below 1 %"]
    for job in jobs.values():
        assert job.arguments["series"] == ["dead/share", *(f"dead/share/blocks.{b}.mlp.act" for b in (0, 5, 11))]
        assert config(job).monitor.every_steps == config(job).steps // 50
    assert config(jobs["DemP + ReLU"]).model.activation == "relu"
    assert config(jobs["DemP"]).method.options["peak_strength"] == 0.0
    assert config(jobs["DemP"]).method.options["criterion"] == "sum"


def test_a_record_written_before_a_field_existed_is_still_this_job():
    job = plan("fig3", "smoke")[1]
    line = {"name": job.name, "work": job.work, "identity": "old", "arguments": {"config": config(job).to_dict()}}
    assert identity_of(line) == job.identity
    del line["arguments"]["config"]["label_smoothing"]
    del line["arguments"]["config"]["method"]["options"]["dynamic"]
    assert identity_of(line) == job.identity
    line["arguments"]["config"]["method"]["options"]["dynamic"] = False
    assert identity_of(line) != job.identity
    line["arguments"]["config"]["no_such_field"] = 1
    assert identity_of(line) == "old"
