"""The table of cuts: dead and saturated neurons apart, and files from before they were."""

import json

from demp.experiments.report.runs import ReportedRun, read_cuts
from demp.experiments.report.tables import cuts_table
from demp.files.reading import Skipped

LINE = {
    "step": 10, "removed": 5, "neurons_after": 20, "parameters_after": 300, "flops_before": 900, "flops_after": 700,
    "layers": {"act": {"before": 25, "kept": 20, "hash": "x"}}, "seconds": 0.1,
}  # fmt: skip


def test_both_counts_stand_in_the_table_and_old_files_are_read(tmp_path):
    file = tmp_path / "cuts.jsonl"
    lines = [LINE, LINE | {"step": 20, "dead": 2, "saturated": 3}, LINE | {"step": 30, "dead": None, "saturated": None}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    cuts, _ = read_cuts(file, Skipped())
    assert [(cut.dead, cut.saturated) for cut in cuts] == [(None, None), (2, 3), (None, None)]
    page = cuts_table(ReportedRun("one", cuts=cuts), 0)
    assert "saturated" in page and page.count("<tr") == 4
