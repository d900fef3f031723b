import json
import random
from itertools import pairwise

import pytest

from demp.files import reading as lines
from demp.files.reading import Skipped, blocks, line_start, look, looked, number, read_json, records


def has_step(record):
    return "" if "step" in record else "no step"


@pytest.fixture
def faulty(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(
        b'{"step": 1}\nnot json\n\n[1, 2]\n{"foreign": 3}\n{"step": 2}\n\xff\xfe\n{"step": 3}\n'
        + b"nonsense\n" * 7
        + b'{"step": 4, "val'
    )
    return file


def test_records_are_kept_and_everything_else_is_counted_and_named(faulty):
    skipped = Skipped()
    assert [record["step"] for record in records(faulty, skipped, has_step)] == [1, 2, 3]
    assert [str(fault) for fault in skipped.faults] == [
        f"{faulty}: lines 2, 7, 9, 10, 11, ...: not JSON",
        f"{faulty}: line 4: no JSON object",
        f"{faulty}: line 5: no step",
        f"{faulty}: line 16: half-written",
    ]
    assert skipped.lines == 12
    other = Skipped()
    other.merge(skipped.faults)
    assert other.faults == skipped.faults and other.lines == 12


def test_a_missing_file_has_no_lines_and_is_no_fault(tmp_path):
    skipped = Skipped()
    assert list(records(tmp_path / "none.jsonl", skipped)) == [] == look(tmp_path / "none.jsonl", skipped, b"x")
    assert list(records(tmp_path, skipped)) == []  # a folder of that name
    assert [str(fault) for fault in skipped.faults] == [f"{tmp_path}: cannot be read (Is a directory)"]


def test_deep_nesting_is_no_record(tmp_path):
    file = tmp_path / "deep.jsonl"
    file.write_text("[" * 100_000 + "\n")
    skipped = Skipped()
    assert list(records(file, skipped)) == []
    assert skipped.lines == 1


def long_file(path, count, tests):
    draw = random.Random(3)
    text = [json.dumps({"step": at, "noise": "x" * draw.randrange(80, 200)}) for at in range(count)]
    for at in tests:
        text[at] = json.dumps({"step": at, "eval/top1": at / count})
    path.write_text("\n".join(text) + "\n")
    return path


def test_a_look_sees_all_tests_and_the_ends_of_a_long_file(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 10_000)
    tests = [0, 17, 4000, 4001, 7999]
    file, skipped = long_file(tmp_path / "long.jsonl", 8000, tests), Skipped()
    assert file.stat().st_size > lines.WHOLE_BYTES
    seen = look(file, skipped, b'"eval/top1"')
    steps = [record["step"] for record in seen]
    assert [record["step"] for record in seen if "eval/top1" in record] == tests
    assert steps == sorted(set(steps)) and steps[0] == 0 and steps[-1] == 7999
    assert lines.LOOKS <= len(steps) <= lines.LOOKS + len(tests) + -(-file.stat().st_size // 10_000)
    assert max(b - a for a, b in pairwise(steps)) < 2.5 * 8000 / lines.LOOKS
    assert not skipped.faults


@pytest.mark.parametrize("damage", [b"half a li\n", b'{"step": 3}', b"\n", b'{"step": 5} extra\n', b"[1]\n"])
@pytest.mark.parametrize("at", ["beginning", "middle", "end"])
def test_a_long_file_with_a_bad_line_is_read_line_by_line(tmp_path, at, damage):
    file = long_file(tmp_path / "long.jsonl", 6000, [])
    whole = file.read_bytes()
    place = {"beginning": 0, "middle": whole.index(b"\n", len(whole) // 2) + 1, "end": len(whole)}[at]
    file.write_bytes(whole[:place] + damage + whole[place:])
    assert looked(file, file.stat().st_size, b"eval", has_step) is None
    expected, skipped = Skipped(), Skipped()
    slow = list(records(file, expected, has_step))
    assert look(file, skipped, b"eval", has_step) == slow
    assert skipped.faults == expected.faults


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_blocks_are_whole_lines(tmp_path, monkeypatch, size):
    monkeypatch.setattr(lines, "BLOCK_BYTES", size)
    file = long_file(tmp_path / "some.jsonl", 50, [])
    with file.open("rb") as opened:
        found = list(blocks(opened))
    assert b"".join(block for _, block in found) == file.read_bytes()
    assert all(block.endswith(b"\n") for _, block in found)
    assert [start for start, _ in found] == [sum(len(b) for _, b in found[:at]) for at in range(len(found))]


def test_line_start():
    block = b"ab\ncd\n"
    assert [line_start(block, at) for at in range(6)] == [0, 0, 0, 3, 3, 3]


def test_numbers_are_finite_numbers():
    values = {"a": 1, "b": 2.5, "c": True, "d": "3", "e": float("nan"), "f": float("inf"), "g": None, "h": 10**400}
    assert {name: number(values, name) for name in [*values, "absent"]} == {
        "a": 1.0, "b": 2.5, "c": None, "d": None, "e": None, "f": None, "g": None, "h": None, "absent": None,
    }  # fmt: skip


def test_files_that_are_no_object_are_named(tmp_path):
    skipped = Skipped()
    (tmp_path / "half.json").write_text('{"a": 1')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "good.json").write_text('{"a": 1}')
    read = [read_json(tmp_path / f"{name}.json", skipped) for name in ("half", "list", "good", "none")]
    assert read == [{}, {}, {"a": 1}, {}]
    assert [str(fault) for fault in skipped.faults] == [
        f"{tmp_path / 'half.json'}: not JSON",
        f"{tmp_path / 'list.json'}: no JSON object",
    ]
    assert skipped.lines == 0
