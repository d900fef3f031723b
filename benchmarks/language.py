"""Small language models that shrink while they train, beside dense ones and narrow ones trained from scratch.

    python benchmarks/language.py --form gpt2 llama --steps 600 --seeds 1 --budgets 0.7 0.5 --out runs/language
    python benchmarks/language.py --out runs/language --measure   # times again, on a machine that is idle now
    python benchmarks/language.py --out runs/language --table     # the results so far, as Markdown

GPT-2's and Llama's form from transformers, on the documentation and sources of this checkout (see language_text.py);
it needs ``pip install '.[dev]'``. Methods: ``dense``; ``demp``, which removes heads and neurons, and ``demp-streams``,
which may remove channels of the embedding; from scratch ``narrow``, with narrower MLPs (and fewer heads, where that is
too little), and ``thin``, narrower everywhere. All see the same windows of text in the same order, with AdamW, a
warm-up and a cosine. A budget that demp cannot reach by what it removes is said, and the nearest one is taken for all.

Loss: held-out text, nats per token and bits per byte. Training FLOPs: three forwards of the network that there was at
each step. Times: steps late in the run, with the pruner attached, each in turns with a step of a dense network; then
generation with a cache, in turns with the dense network. ``--measure`` repeats both with the models that came out,
without a pruner. The cache is that of one sequence of the whole context.

Each finished run is a line in OUT/results.jsonl and is not repeated; its model lies beside it. Interrupted ones begin
anew.
"""

import argparse
import hashlib
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import demp
from common import Ratio, in_pairs, machine
from demp.errors import DempError, UsageError
from demp.files.run import FORWARD_AND_BACKWARD
from language_networks import (
    FORMS,
    GENERATION_BATCHES,
    SMALLER,
    Sizes,
    flops_of,
    generation_times,
    held_by,
    reachable,
    speeds,
)
from language_text import Text, held_out_loss, read_text

METHODS = ("dense", "demp", "demp-streams", "narrow", "thin")
KEY = ("form", "method", "budget", "seed", "steps", "batch_size", "sizes", "text")
"""What identifies a run; ``sizes`` are the dense model's, ``text`` is the digest of its tokens."""
SIZES = ("layers", "width", "heads", "hidden", "context", "words")
LEARNING_RATE, WARM_UP = 1e-3, 0.05
STEP_WARM_UP = 2
FEWEST_STEPS = 4


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, measure again, or print the table."""
    chosen = parsed(arguments)
    results = Path(chosen.out) / "results.jsonl"
    torch.set_num_threads(chosen.threads)
    try:
        if chosen.measure:
            measure_again(results, chosen)
        elif not chosen.table:
            run_missing(results, chosen)
    except DempError as error:
        sys.exit(str(error))
    print(table(read(results)))


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--form", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.7, 0.5], help="shares of the dense FLOPs")
    parser.add_argument("--seeds", type=int, default=1, help="seeds per method: 0, 1, ...")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, default=getattr(Sizes(), name), help="of the dense model")
    parser.add_argument("--pairs", type=int, default=15, help="how often a step and a dense one are timed in turns")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--out", default="runs/language")
    parser.add_argument("--measure", action="store_true", help="measure the times of all results again")
    parser.add_argument("--table", action="store_true", help="print the results so far and stop")
    return parser.parse_args(arguments)


# Runs ----------------------------------------------------------------------------------------------------


def run_missing(results: Path, chosen: argparse.Namespace) -> None:
    """All runs, those that are in the results already left alone."""
    if chosen.steps < FEWEST_STEPS:
        raise UsageError(f"steps is {chosen.steps}; give at least {FEWEST_STEPS}")
    sizes = Sizes(**{name: getattr(chosen, name) for name in SIZES}, head=chosen.width // chosen.heads)
    text = read_text(sizes.words)
    for key in plan(chosen, sizes, text):
        if any(same(key, record) for record in read(results)):
            print(f"{title(key)}: done before", flush=True)
            continue
        record = run(key, sizes, text, chosen.pairs, folder_of(key, results))
        results.parent.mkdir(parents=True, exist_ok=True)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{title(key)}: {brief(record)}", flush=True)


def plan(chosen: argparse.Namespace, sizes: Sizes, text: Text) -> Iterator[dict[str, Any]]:
    """What identifies each run, the dense ones first."""
    budgets = {form: [reachable(form, sizes, share) for share in chosen.budgets] for form in chosen.form}
    for seed in range(chosen.seeds):
        for form in chosen.form:
            pairs = [("dense", 1.0), *((m, b) for b in dict.fromkeys(budgets[form]) for m in METHODS[1:])]
            for method, budget in (pair for pair in pairs if pair[0] in chosen.methods):
                values = (form, method, budget, seed, chosen.steps, chosen.batch_size, asdict(sizes), text.digest)
                yield dict(zip(KEY, values, strict=True))


def same(key: dict[str, Any], record: dict[str, Any]) -> bool:
    """Is it that run?"""
    return all(record[name] == key[name] for name in KEY)


def title(key: dict[str, Any]) -> str:
    """A run in words."""
    share = "" if key["method"] == "dense" else f"-{key['budget']:g}"
    return f"{key['form']}-{key['method']}{share}-seed{key['seed']}"


def folder_of(key: dict[str, Any], results: Path) -> Path:
    """Where the model of a run is stored."""
    every = json.dumps([key[name] for name in KEY])
    return results.parent / f"{title(key)}-{hashlib.sha256(every.encode()).hexdigest()[:8]}"


class Training:
    """One model on its way through the text; every model of a seed sees the same windows in the same order."""

    def __init__(self, model: nn.Module, text: Text, key: dict[str, Any]) -> None:
        self.model, steps = model, key["steps"]
        self._batches = text.batches(context=key["sizes"]["context"], size=key["batch_size"], seed=key["seed"])
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        rises = max(1, round(WARM_UP * steps))
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / rises) * (1 + math.cos(math.pi * step / steps)) / 2
        )

    def step(self) -> None:
        """One step."""
        tokens = next(self._batches)
        self.model.train()
        loss = self.model(input_ids=tokens, labels=tokens).loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._scheduler.step()


def run(key: dict[str, Any], sizes: Sizes, text: Text, pairs: int, folder: Path) -> dict[str, Any]:
    """Train one model; says what came out."""
    form, steps, example = key["form"], key["steps"], sizes.example()
    own = SMALLER[key["method"]](form, sizes, key["budget"]) if key["method"] in SMALLER else sizes
    training, dense = (Training(made(form, shape, key["seed"]), text, key) for shape in (own, sizes))
    pruner = None
    if key["method"].startswith("demp"):
        options: Any = {"budget": demp.Budget(flops=key["budget"]), "streams": key["method"] == "demp-streams"}
        pruner = demp.DemP(training.model, training.optimizer, example_inputs=example, total_steps=steps, **options)
    spent = 0

    def step() -> None:
        nonlocal spent
        flops = flops_of(form, own) if pruner is None else pruner.flops
        spent += FORWARD_AND_BACKWARD * key["batch_size"] * flops
        training.step()

    pairs = min(pairs, max(1, steps // 4))
    for _ in range(steps - pairs - STEP_WARM_UP - 1):  # the last step makes the last check: it is no usual one
        step()
    late = in_pairs("training step", dense.step, step, pairs=pairs, warmup=STEP_WARM_UP)
    step()
    if pruner is not None:
        pruner.finish()
    demp.save(training.model, folder, example_inputs=example, builder={"form": form, "sizes": asdict(own)})
    sequence = text.prompt(sizes.context, 1)
    return {
        **key,
        **held_out_loss(training.model, text, sizes.context),
        "flops": flops_of(form, own) if pruner is None else demp.cost(training.model, example).flops,
        "flops_dense": flops_of(form, sizes),
        **held_by(training.model, sequence),
        **{f"{name}_dense": number for name, number in held_by(dense.model, sequence).items()},
        "train_flops": spent,
        "train_flops_dense": FORWARD_AND_BACKWARD * key["batch_size"] * steps * flops_of(form, sizes),
        "own_sizes": asdict(own),
        "layers_left": {} if pruner is None else {name: left for name, left, _ in pruner.summary().layers},
        **times(late, training.model, dense.model, key, text, pairs),
    }


def made(form: str, sizes: Sizes, seed: int) -> nn.Module:
    """A new model with the weights of its seed."""
    torch.manual_seed(seed)
    return FORMS[form](sizes)


# Times ---------------------------------------------------------------------------------------------------


def times(
    steps: Ratio, model: nn.Module, dense: nn.Module, key: dict[str, Any], text: Text, pairs: int
) -> dict[str, Any]:
    """Tokens per second of training and of generation, from a quarter of the context to the whole."""
    context = key["sizes"]["context"]
    prompt = text.prompt(context // 4, max(GENERATION_BATCHES))
    found = speeds("train", steps, key["batch_size"] * context)
    return {**found, **generation_times(model, dense, prompt, context, pairs), "machine": machine()}


def measure_again(results: Path, chosen: argparse.Namespace) -> None:
    """The times of every model that came out, in turns with the dense model's, in place of what the results hold."""
    records = read(results)
    for index, key in enumerate(records):
        text, form, dense_sizes = read_text(key["sizes"]["words"]), key["form"], Sizes(**key["sizes"])
        build = builder(form, Sizes(**key["own_sizes"]))
        model, dense = demp.load(build, folder_of(key, results)), made(form, dense_sizes, key["seed"])
        ours, plain = (Training(one, text, key) for one in (model, dense))
        steps = in_pairs("training step", plain.step, ours.step, pairs=chosen.pairs, warmup=STEP_WARM_UP)
        records[index] = {**key, **times(steps, model, dense, key, text, chosen.pairs)}
        print(f"{title(key)}: {brief(records[index])}", flush=True)
    results.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def builder(form: str, sizes: Sizes) -> Callable[[], nn.Module]:
    """What makes the model before it was pruned."""
    return lambda: FORMS[form](sizes)


# What came out -------------------------------------------------------------------------------------------


def read(results: Path) -> list[dict[str, Any]]:
    """All finished runs."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def brief(record: dict[str, Any]) -> str:
    """One run in a line."""
    return (
        f"held-out loss {record['loss']:.4f}, {record['flops'] / record['flops_dense']:.4f} of the FLOPs, training at "
        f"{record['train_over_dense']:.2f} and generation at {record['generate_1_over_dense']:.2f} of dense's speed"
    )


COLUMNS = {
    "bits per byte": "bits_per_byte",
    "parameters": "parameters",
    "FLOPs": "flops",
    "training FLOPs": "train_flops",
    "cache": "cache_bytes",
    "training, tokens/s": "train_over_dense",
    **{f"generation of {batch}, tokens/s": f"generate_{batch}_over_dense" for batch in GENERATION_BATCHES},
}
"""Column -> what it is the mean of over the seeds."""


def table(records: list[dict[str, Any]]) -> str:
    """Markdown; sizes are shares of the dense network, speeds ratios to it, measured in turns."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(json.dumps([record[name] for name in KEY if name != "seed"]), []).append(record)
    head = ("form", "method", "budget", "held-out loss of each seed", "mean", *COLUMNS)
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [f"| {' | '.join(row(group))} |" for group in groups.values()]
    about = {f"{r['steps']} steps of {r['batch_size']} x {r['sizes']['context']} tokens, {r['sizes']}" for r in records}
    about |= {"; ".join(f"{key} {value}" for key, value in r["machine"].items()) for r in records}
    return "\n".join([*lines, "", *sorted(about)])


def row(group: list[dict[str, Any]]) -> list[str]:
    """One form, method and budget over its seeds."""
    first, losses = group[0], [record["loss"] for record in group]

    def mean(name: str) -> str:
        return f"{statistics.fmean(r[name] / r.get(f'{name}_dense', 1.0) for r in group):.3f}"

    budget = "" if first["method"] == "dense" else f"{first['budget']:g}"
    each, average = ", ".join(f"{loss:.4f}" for loss in losses), f"{statistics.fmean(losses):.4f}"
    return [first["form"], first["method"], budget, each, average, *(mean(name) for name in COLUMNS.values())]


if __name__ == "__main__":
    main()
