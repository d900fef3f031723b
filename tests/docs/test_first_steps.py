"""What a newcomer pastes or opens first runs as it stands: the README's first block, the notebook."""

import json
import re
import subprocess
import sys

import pages
import pytest

NOTEBOOK = pages.ROOT / "examples" / "notebook.ipynb"


def run(code, folder):
    file = folder / "first.py"
    file.write_text(code)
    return subprocess.run([sys.executable, file], cwd=folder, capture_output=True, text=True, timeout=280)


def cells() -> list[str]:
    found = json.loads(NOTEBOOK.read_text())["cells"]

    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def test_the_first_block_of_the_readme_runs_in_an_empty_file(tmp_path):
    first = re.search(r"^```python\n(.*?)^```$", (pages.ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert first and "budget=demp.Budget(flops=0.4)" in first[1]
    done = run(first[1], tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = re.search(r"FLOPs +([\d,]+) -> ([\d,]+)", done.stdout).groups()
    assert int(after.replace(",", "")) <= 0.4 * int(before.replace(",", ""))
    assert {file.name for file in tmp_path.iterdir()} == {"first.py", "small"}


def test_the_install_line_and_the_numbers_come_before_the_code():
    text = (pages.ROOT / "README.md").read_text()
    assert text.index("pip install demp") < text.index("| measured") < text.index("```python")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    done = run("\n\n".join(cells()), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "epoch 12 of 12: test accuracy" in done.stdout and "digits  step 50 of 60  loss" in done.stdout
    assert (tmp_path / "small").is_dir()


def test_the_notebook_is_clean_and_compiles():
    notebook = json.loads(NOTEBOOK.read_text())
    assert all(cell["outputs"] == [] for cell in notebook["cells"] if cell["cell_type"] == "code")
    for number, source in enumerate(cells()):
        compile(source, f"cell {number}", "exec")
