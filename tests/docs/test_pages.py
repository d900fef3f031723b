"""The pages are true: their Python runs, their commands parse, their methods keep the contract, the site builds."""

import os
import re
import shlex
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pages
import pytest
from torch import distributed

import forks
from demp import methods
from demp.cli.commands import COMMANDS, parse

MAKEFILE = (pages.ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
WITH_PYTHON = [page for page in pages.PAGES if any(kind == "python" for kind, _, _ in pages.blocks(page))]


def named(paths, slow=()):
    return [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in slow)) for path in paths]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to write in; no process group is left behind."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.mark.parametrize("page", named(WITH_PYTHON, slow=("data", "sweeps")))
def test_the_python_of_a_page_runs(page, elsewhere):
    pages.run(page)


def test_a_block_that_fails_names_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n<!-- python\nx = 1\n-->\n\n```python\ny = x\nassert y == 2\n```\n")
    with pytest.raises(AssertionError) as failure:
        pages.run(page)
    assert failure.traceback[-1].lineno + 1 == 9
    page.write_text("```python\n>>> 1 + 1\n3\n\n```\n")
    with pytest.raises(AssertionError, match="Expected:\n    3\nGot:\n    2"):
        pages.run(page)


# Commands ------------------------------------------------------------------------------------------


def of_demp(line: str) -> list[str] | None:
    """The arguments of a line that calls demp, directly or under torchrun."""
    line = re.sub(r"\$\{?\w+\}?", "1", line)  # a loop's variable
    if "-m demp.cli " in line:
        return shlex.split(line.partition("-m demp.cli ")[2])
    return shlex.split(line)[1:] if line.startswith("demp ") else None


@pytest.mark.parametrize("page", named(pages.PAGES))
def test_every_command_in_a_block_parses(page):
    for line in pages.shell_lines(page):
        arguments = of_demp(line)
        if arguments is not None:
            try:
                parse(arguments)
            except SystemExit as stop:
                pytest.fail(f"{page.name}: {line}: exit code {stop.code}")
        if line.startswith("make "):
            assert line.split()[1] in TARGETS, line
        script = re.search(r"(?:python|torchrun)\s.*?((?:benchmarks|examples|tests)/\S+\.py)", line)
        if script:
            assert (pages.ROOT / script[1]).is_file(), line


@pytest.mark.parametrize("page", named(pages.PAGES))
def test_every_command_in_the_prose_exists(page, capsys):
    helps: dict[str, str] = {}
    for line in pages.spoken(page):
        program, verb, *rest = line.split()
        if program == "make":
            assert verb in TARGETS, line
            continue
        if verb not in helps:
            with pytest.raises(SystemExit) as stop:
                parse([verb, "--help"])
            helps[verb] = capsys.readouterr().out
            assert stop.value.code == 0, f"{page.name}: {line}"
        for flag in re.findall(r"--[a-z-]+", " ".join(rest)):
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", helps[verb]), f"{page.name}: {line}: {flag}"


def test_a_wrong_command_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Say `demp trian` or\n\n```sh\nfor s in 1 2; do\n  demp train --stesp $s \\\n    --seed 1  # so\ndone\n```\n"
    )
    assert pages.spoken(page) == ["demp trian"]
    assert of_demp(pages.shell_lines(page)[2]) == ["train", "--stesp", "1", "--seed", "1"]
    with pytest.raises(SystemExit):
        parse(["train", "--stesp", "1"])


def test_links_between_files_lead_somewhere():
    for page in pages.PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            if "reference/" not in target:  # written when the site is built, which checks them
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_source_files_named_in_pages_exist():
    sources = {
        file.relative_to(pages.ROOT).as_posix() for glob in ("*.py", "*/**/*.py") for file in pages.ROOT.glob(glob)
    }
    for page in pages.PAGES:
        for name in re.findall(r"`([\w/]+\.py)`", page.read_text(encoding="utf-8")):
            assert any(f"/{source}".endswith(f"/{name}") for source in sources), f"{page.name}: {name}"


# A method in one file ------------------------------------------------------------------------------


def test_the_method_of_the_page_keeps_the_contract(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "methods")
    import test_contract
    import test_registry

    (code,) = [text for kind, text, _ in pages.blocks(pages.ROOT / "docs" / "add_a_method.md") if kind == "python"]
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "low_norm.py").write_text(code)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    methods.registry.cache_clear()
    try:
        assert "low-norm" in methods.names()
        for check in vars(test_registry.TestEveryMethod).values():
            if callable(check):
                check(test_registry.TestEveryMethod(), "low-norm")
        contract = test_contract.TestEveryMethod()
        contract.test_it_trains_and_thins_the_network_out("low-norm")
        contract.test_two_runs_are_equal_to_the_bit_though_one_is_saved_on_its_way("low-norm")
        for at in (1, 11, 21):
            contract.test_an_interrupted_run_ends_as_if_it_had_not_stopped("low-norm", at)
        contract.test_what_comes_out_is_saved_and_loaded("low-norm", tmp_path)
        contract.test_it_works_with_autocast_and_single_precision("low-norm")
        assert "low-norm" in reference("methods_page")
    finally:
        methods.registry.cache_clear()
        sys.modules.pop("demp.methods.low_norm", None)
        vars(methods).pop("low_norm", None)


# The site ------------------------------------------------------------------------------------------


def generator():
    sys.path.insert(0, str(pages.ROOT / "docs"))
    try:
        import generate
    finally:
        sys.path.pop(0)
    return generate


def reference(page: str) -> str:
    return getattr(generator(), page)()


def test_every_method_with_every_knob_has_its_line():
    page = reference("methods_page")
    common, *parts = re.split(r"^\(method-([a-z0-9-]+)\)=$", page, flags=re.MULTILINE)
    described = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(described) == methods.names()
    for name, text in described.items():
        for field in methods.config_class(name).__dataclass_fields__:
            line = re.search(rf"^\| `{field}` \| .*\| .* \| (.*) \|$", text, re.MULTILINE)
            if field in methods.MethodConfig.__dataclass_fields__:
                assert f"| `{field}` |" in common
            else:
                assert line and len(line[1]) > 5, f"{name}: {field}"


def test_every_command_has_its_help():
    page = reference("cli_page")
    assert {"train", "resume", "inspect", "eval", "export", "compare", "recipes", "demo"} <= COMMANDS.keys()
    for name in COMMANDS:
        assert f"\n## demp {name}\n\n```text\nusage: demp {name} [-h]" in page


@pytest.mark.parametrize("name", ["graph", "cut", "shrinking"])
def test_images_have_a_title_and_load_nothing(name):
    text = (pages.ROOT / "docs" / f"{name}.svg").read_text()
    root = ET.fromstring(text)
    assert "prefers-color-scheme: dark" in text or name == "shrinking"
    assert not re.search(r'href="(?!#|data:)', text)
    assert root.get("viewBox")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_site_builds_without_warnings_and_offline(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-b", "html"]
    offline = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    done = forks.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(pages.ROOT / "docs"), str(tmp_path / "site")],
        env={**os.environ, **offline}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    for page in [*pages.PAGES[1:], pages.ROOT / "docs" / "reference" / "python.md"]:
        if page.parent.name == "reference" or page.parent.name == "docs":
            assert (site / page.relative_to(pages.ROOT / "docs").with_suffix(".html")).is_file(), page
    html = (site / "reference" / "methods.html").read_text()
    assert "peak_strength" in html
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', html)
