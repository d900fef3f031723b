"""benchmarks/language.py: what its lines hold, budgets met, generation with a cache, finished runs left alone."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import demp

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import language
import language_networks
import language_text
from thinning import mostly_slow

sys.path.pop(0)

STEPS, BATCH, CONTEXT = 4, 2, 8
SIZES = language_networks.Sizes(layers=1, width=16, heads=2, hidden=128, context=CONTEXT, words=260, head=8)


@pytest.fixture(autouse=True)
def little_text(monkeypatch):
    monkeypatch.setattr(language_text, "FILES", ("README.md",))
    monkeypatch.setattr(language_text, "BLOCK_BYTES", 500)


def command(form, out):
    sizes = " ".join(f"--{name} {getattr(SIZES, name)}" for name in language.SIZES)
    return f"--form {form} --steps {STEPS} --batch-size {BATCH} --budgets 0.7 --pairs 1 --out {out} {sizes}".split()


@pytest.mark.parametrize("form", mostly_slow(["gpt2", "llama"], ["gpt2"]))
def test_lines_hold_what_the_models_are(form, tmp_path, monkeypatch, capsys):
    language.main(command(form, tmp_path))
    printed = capsys.readouterr().out
    records = {record["method"]: record for record in language.read(tmp_path / "results.jsonl")}
    assert tuple(records) == language.METHODS
    dense, pruned, streamed, narrow, thin = records.values()
    forwards = 3 * BATCH * STEPS
    assert dense["flops"] == dense["flops_dense"] == language_networks.flops_of(form, SIZES)
    assert dense["train_flops"] == dense["train_flops_dense"] == forwards * dense["flops"]
    assert narrow["train_flops"] == forwards * narrow["flops"] < pruned["train_flops"] < dense["train_flops"]
    assert all(0.693 < record["flops"] / dense["flops"] <= 0.7 for record in (pruned, streamed, narrow, thin))
    assert len({record["loss"] for record in records.values()}) >= 4  # both of demp may choose the same neurons
    assert thin["own_sizes"]["width"] < SIZES.width == narrow["own_sizes"]["width"]
    assert dense["cache_bytes"] == 2 * 4 * SIZES.layers * SIZES.width * CONTEXT

    text = language_text.read_text(SIZES.words)
    for record in records.values():
        build = language.builder(form, language_networks.Sizes(**record["own_sizes"]))
        model = demp.load(build, language.folder_of(record, tmp_path / "results.jsonl"))
        assert record["parameters"] == sum(p.numel() for p in model.parameters())
        assert record is not pruned or record["flops"] == demp.cost(model, SIZES.example()).flops
        assert {key: record[key] for key in ("loss", "bits_per_byte")} == pytest.approx(by_hand(model, text))
        model.double()
        prompt = text.prompt(4, 3)
        with_cache, without = (language_networks.generate(model, prompt, CONTEXT, use_cache=u) for u in (True, False))
        assert torch.equal(with_cache, without) and with_cache.shape == (3, CONTEXT)

    monkeypatch.setattr(language, "run", lambda *_: pytest.fail("trained again"))
    language.main(command(form, tmp_path))
    again = capsys.readouterr().out
    assert again.count("done before") == 5 and again.endswith(language.table(list(records.values())) + "\n")
    assert printed.endswith(again[again.index("| form") :])
    if form == "gpt2":
        measured_again(command(form, tmp_path), list(records.values()), tmp_path / "results.jsonl")


def measured_again(arguments, first, results):
    """``--measure`` changes the times, and nothing else."""
    language.main([*arguments, "--measure"])
    for old, new in zip(first, language.read(results), strict=True):
        timed = {name for name in old if name.startswith(("generate_", "train_")) and "flops" not in name}
        assert old.keys() == new.keys() and old["train_pairs"] != new["train_pairs"]
        assert {name: old[name] for name in old.keys() - timed} == {name: new[name] for name in old.keys() - timed}


def by_hand(model, text):
    """Token by token: the loss of each after all that its window holds before it."""
    nats, read = [], 0
    tokens = text.held_out[: (len(text.held_out) - 1) // (CONTEXT - 1) * (CONTEXT - 1) + 1]
    for place in range(1, len(tokens)):
        start = (place - 1) // (CONTEXT - 1) * (CONTEXT - 1)
        if place == start + 1:
            with torch.no_grad():
                scores = F.log_softmax(model.eval()(tokens[None, start : start + CONTEXT]).logits[0].double(), -1)
        nats.append(-float(scores[place - 1 - start, tokens[place]]))
        read += int(text.token_bytes[tokens[place]])
    return {"loss": sum(nats) / len(nats), "bits_per_byte": sum(nats) / math.log(2) / read}


def test_the_text_is_split_by_whole_blocks():
    text, blocks = language_text.read_text(260), list(language_text.blocks(language_text.ROOT))
    held_out = blocks[15::16]
    assert "".join(blocks) == (language_text.ROOT / "README.md").read_text(encoding="utf-8")
    assert held_out and all(block.endswith("\n") for block in blocks[:-1])
    assert int(text.token_bytes[text.held_out].sum()) == len("".join(held_out).encode())
    assert int(text.token_bytes[text.train].sum()) == len("".join(blocks).encode()) - len("".join(held_out).encode())
    first, again = (next(text.batches(context=8, size=4, seed=seed)) for seed in (1, 1))
    assert torch.equal(first, again) and first.shape == (4, 8)
    assert not torch.equal(first, next(text.batches(context=8, size=4, seed=2)))


def test_heads_go_where_narrower_mlps_are_too_little(capsys):
    lowest = language_networks.reachable("gpt2", SIZES, 0.01)
    assert "0.01 of the FLOPs cannot be reached" in capsys.readouterr().out
    assert language_networks.reachable("gpt2", SIZES, lowest) == lowest and not capsys.readouterr().out
    narrow = language_networks.narrow("gpt2", SIZES, 0.35)
    assert narrow.heads == 1 and narrow.width == SIZES.head and narrow.hidden < SIZES.hidden
    assert 0.3465 < language_networks.flops_of("gpt2", narrow) / language_networks.flops_of("gpt2", SIZES) <= 0.35


def test_too_few_steps_end_in_a_sentence(tmp_path):
    with pytest.raises(SystemExit) as stop:
        language.main(["--steps", "3", "--out", str(tmp_path)])
    assert stop.value.code == "steps is 3; give at least 4" and not list(tmp_path.iterdir())
