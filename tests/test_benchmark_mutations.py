"""The hand-made faults fit the package as it is."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import mutations

sys.path.pop(0)


@pytest.mark.parametrize("fault", mutations.FAULTS, ids=lambda fault: f"{fault.file}: {fault.line.strip()[:40]}")
def test_a_fault_can_be_put_in_and_its_tests_exist(fault):
    assert mutations.unfit(fault) == ""


def test_twenty_faults():
    assert len({(fault.file, fault.line) for fault in mutations.FAULTS}) == 20
