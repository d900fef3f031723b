"""Twenty hand-made faults in the core, one at a time: do the tests notice?

    python benchmarks/mutations.py --out runs/mutations.jsonl

Each fault replaces one line of a copy of the package; the tests named beside it run against the copy until one fails.
A fault that no test notices is printed as missed, and the exit code is 1. Finished faults are lines in OUT and are not
repeated. Before the first fault all named tests run once against the unchanged copy, which they must pass.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Fault:
    """One line of the package, what takes its place, and the tests that must notice."""

    file: str
    line: str
    instead: str
    tests: str


FAULTS = (
    Fault(
        "surgery/shrink.py",
        "small_grad = None if grad is None else narrowed(grad, keep)",
        "small_grad = None",
        "surgery/test_identity.py surgery/test_optimizers.py surgery/test_live_runs.py surgery/test_exact_random.py",
    ),
    Fault(
        "surgery/shrink.py",
        "self._undo.append(partial(restore, tensor, old, grad))",
        "self._undo.append(partial(restore, tensor, old, None))",
        "surgery",
    ),
    Fault(
        "surgery/shrink.py",
        "for dims, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):",
        "for dims, memory_format in ():",
        "surgery",
    ),
    Fault(
        "surgery/state.py",
        "            if key in odd:",
        "            if False:",
        "surgery",
    ),
    Fault(
        "surgery/transaction.py",
        "        undo_log.roll_back()",
        "        pass",
        "surgery",
    ),
    Fault(
        "surgery/evidence.py",
        "    raise_if_difference(found, live.context)",
        "    pass",
        "surgery",
    ),
    Fault(
        "surgery/moves.py",
        "(use.moments.mean != 0) | (use.moments.squares != 0)",
        "(use.moments.squares != 0)",
        "surgery",
    ),
    Fault(
        "activity/criteria.py",
        "return (values.top == 0) & (values.bottom == 0)",
        "return values.top == 0",
        "activity/test_criteria.py activity/test_probe.py",
    ),
    Fault(
        "activity/criteria.py",
        "return values.top <= 0",
        "return values.top < 0",
        "activity",
    ),
    Fault(
        "activity/criteria.py",
        "scale = peak[peak.isfinite()].mean() if self.relative else 1.0",
        "scale = 1.0",
        "activity",
    ),
    Fault(
        "activity/tally.py",
        "torch.stack(flags).all(0)",
        "torch.stack(flags).any(0)",
        "activity ranks/test_ddp.py",
    ),
    Fault(
        "graph/neurons.py",
        "return (voters > 0) & (votes == voters)",
        "return (voters > 0) & (votes > 0)",
        "activity graph",
    ),
    Fault(
        "regularization/noise.py",
        "        scale = noise.std * target.factor",
        "        scale = noise.std",
        "test_noise.py",
    ),
    Fault(
        "regularization/noise.py",
        "(seed * SEED_STRIDE + step)",
        "(seed * SEED_STRIDE)",
        "test_noise.py",
    ),
    Fault(
        "regularization/schedules.py",
        "return cosine(1.0, end, (share - self.peak_at) / (1.0 - self.peak_at))",
        "return cosine(1.0, end, share)",
        "test_schedules.py",
    ),
    Fault(
        "masking/masks.py",
        "            self._multiply(self._pairs())",
        "            pass",
        "test_masks.py methods/test_masking.py methods/test_combination.py",
    ),
    Fault(
        "budgets/choice.py",
        "    while lack:",
        "    for _ in range(1 if lack else 0):",
        "budgets methods/test_course.py",
    ),
    Fault(
        "pruner/pruner.py",
        "report = self._checks.make(final=self.step >= self.total_steps)",
        "report = self._checks.make(final=False)",
        "test_pruner.py test_pruner_cuts.py test_what_moves.py",
    ),
    Fault(
        "pruner/cutter.py",
        "            method.load_state_dict(before)",
        "            pass",
        "test_skipping.py test_pruner_cuts.py test_faults_train.py test_diverged.py methods",
    ),
    Fault(
        "artifact/folder.py",
        '    if sha256(file) != architecture["weights_sha256"]:',
        "    if False:",
        "artifact/test_artifact_refusals.py",
    ),
)


def unfit(fault: Fault) -> str:
    """Why a fault cannot be tried: its line is not there exactly once, or a test is missing; empty if it can be."""
    times = (ROOT / "src" / "demp" / fault.file).read_text().count(fault.line)
    if times != 1:
        return f"{fault.file} has the line of a fault {times} times: {fault.line.strip()}"
    absent = [name for name in fault.tests.split() if not (ROOT / "tests" / name).exists()]
    return f"no tests at {', '.join(absent)}" if absent else ""


def changed(copy: Path, fault: Fault) -> None:
    """Put the fault into a fresh copy of the package."""
    shutil.copytree(ROOT / "src", copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / "demp" / fault.file
    file.write_text(file.read_text().replace(fault.line, fault.instead))


def failing(copy: Path, tests: str) -> str:
    """The first test that fails against a copy of the package; empty if all pass."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    command += ["-m", "not slow and not browser", *(f"tests/{name}" for name in tests.split())]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1, 2):
        sys.exit(f"pytest ended with code {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].split()[1]


def main() -> int:
    """Try every fault that has no line in the file yet; 1 if any was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/mutations.jsonl"))
    parser.add_argument("--check-first", action="store_true", help="run all named tests without a fault before")
    asked = parser.parse_args()
    if broken := [why for fault in FAULTS if (why := unfit(fault))]:
        sys.exit("\n".join(broken))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    known = {}
    if asked.out.exists():
        for line in asked.out.read_text().splitlines():
            found = json.loads(line)
            known[found["file"], found["line"]] = found
    with tempfile.TemporaryDirectory() as folder:
        if asked.check_first:
            shutil.copytree(ROOT / "src", Path(folder) / "whole")
            every = " ".join({one: "" for fault in FAULTS for one in fault.tests.split()})
            if broken := failing(Path(folder) / "whole", every):
                sys.exit(f"without any fault {broken} fails")
        for number, fault in enumerate(FAULTS):
            if (fault.file, fault.line) not in known:
                copy = Path(folder) / str(number)
                changed(copy, fault)
                known[fault.file, fault.line] = {**vars(fault), "noticed_by": failing(copy, fault.tests)}
                with asked.out.open("a") as file:
                    file.write(json.dumps(known[fault.file, fault.line]) + "\n")
            found = known[fault.file, fault.line]
            print(f"{fault.file}: {fault.instead.strip()}: {found['noticed_by'] or 'MISSED'}", flush=True)
    missed = sum(not found["noticed_by"] for found in known.values())
    print(f"{len(known) - missed} of {len(known)} faults noticed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
