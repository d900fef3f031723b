"""The rows of the eight ordinary set-ups, from the kept runs."""

import sys
from pathlib import Path

from demp.experiments.sweep import Store

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import ordinary

sys.path.pop(0)

ROOT = Path(__file__).parent.parent


def test_every_kind_of_run_is_a_row_and_every_budget_is_met():
    for network in ordinary.NETWORKS:
        for optimizer in ordinary.RATES:
            records = Store(ROOT / "results" / "ordinary" / f"{network}-{optimizer}").records()
            rows = ordinary.rows(network, records)
            assert [row.split(" | ")[1] for row in rows] == ["dense", "narrow", "demp", "twin", "narrow"]
            assert all(0.99 < 2 * one["flops"] / one["flops_dense"] <= 1 for one in records if one["method"] == "demp")


def test_a_row_has_the_accuracy_of_each_seed():
    record = {"eval/top1": 0.5, **dict.fromkeys(("flops", "parameters", "train_flops"), 1)}
    record |= dict.fromkeys(("flops_dense", "parameters_dense", "train_flops_dense"), 4)
    assert ordinary.numbers([record, record | {"eval/top1": 0.25}]) == "50.00, 25.00 | 0.250 | 0.250 | 0.250"
