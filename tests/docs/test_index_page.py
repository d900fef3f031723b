"""What a package index shows of the README: no image or link that would be broken there."""

import importlib.util
import re
import tomllib

import pages
import pytest

ADDRESS = "https://example.org/owner/demp"
TARGET = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
README = (pages.ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((pages.ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hook():
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", pages.ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_an_address_nothing_relative_is_left(hook):
    shown = hook.for_index(README, "", "1.0")
    assert not TARGET.search(BLOCK.sub("", shown)) and hook.urls_of("", "1.0") == {}
    assert "docs/numbers.md" in shown and "docs/shrinking.svg" not in shown
    assert BLOCK.findall(shown) == BLOCK.findall(README)


def test_with_an_address_everything_is_absolute_and_is_there(hook):
    shown = hook.for_index(README, ADDRESS, "1.0")
    targets, before = TARGET.findall(BLOCK.sub("", shown)), TARGET.findall(BLOCK.sub("", README))
    assert len(targets) == len(before) > 20
    for target, path in zip(targets, before, strict=True):
        kind = "raw" if path.endswith((".svg", ".png")) else "blob"
        assert target == f"{ADDRESS}/{kind}/v1.0/{path}" and (pages.ROOT / path).exists()
    urls = hook.urls_of(ADDRESS, "1.0")
    assert urls["Repository"] == ADDRESS
    for url in urls.values():
        assert "/blob/" not in url or (pages.ROOT / url.split("/v1.0/")[1]).exists()


def test_the_project_takes_both_from_the_hook(hook):
    assert {"readme", "urls"} <= set(PROJECT["project"]["dynamic"])
    instance = hook.IndexMetadata(str(pages.ROOT), PROJECT["tool"]["hatch"]["metadata"]["hooks"]["custom"])
    metadata = {"version": "1.0"}
    instance.update(metadata)
    assert metadata["readme"]["content-type"] == "text/markdown" and metadata["readme"]["text"].startswith("# demp")
