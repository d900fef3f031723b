"""What demp and Torch-Pruning can remove from the architectures of the zoo, and what only the other can.

    python benchmarks/coverage_peers.py --most-parameters 6e6 --out runs/coverage_peers.jsonl

Architectures of tests/zoo with random weights and small inputs: the share of channels (outputs of convolutions and
linear layers) and of parameters of a channel that may go. demp offers what leaves the outputs as they are where it is
dead; with ``--everything`` also streams between norms and what is read before any activation. Torch-Pruning asks for
consistent shapes alone: its groups count if they lose half of their channels and the network still runs, with outputs
of the same shapes. It gets no settings for one model or another, as demp does not.
Groups that fail are found by halving; those not tried within ``--seconds`` of processor time do not count, and the row
says so. What only Torch-Pruning removes is sorted by demp's reasons (`KINDS`).
Torch-Pruning comes with ``pip install '.[dev]'``. Each finished architecture is a line in OUT and is not repeated.
"""

import argparse
import copy
import importlib
import json
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import demp
from demp.errors import UsageError
from demp.graph.neurons import NeuronGraph, removable_classes
from peer_pruning import torch_pruning

sys.path[:0] = [str(Path(__file__).parent.parent / "tests" / part) for part in ("zoo", ".")]
ZOO, COVERAGE = map(importlib.import_module, ("architectures", "write_coverage"))

Reach = dict[tuple[str, int], Tensor]
"""(parameter, axis) -> which of its entries may go."""
LINEAR, MIXED = "read before any activation", "in a stream that a norm or softmax mixes"
KINDS = {
    "read before": LINEAR, "no activation": LINEAR, "product of two": LINEAR,
    "over the neuron axis": MIXED, "mixed before": MIXED, "model output": MIXED,
}  # fmt: skip
"""Part of demp's reason -> kind. What is linear is live wherever its weights are not zero: it never dies by itself.
What is mixed changes the others as a zero, too, unless the cut plans the norm."""


def layers(model: nn.Module) -> dict[tuple[str, int], str]:
    """(weight, axis of its outputs) of every convolution and linear layer (GPT-2's Conv1D is one), and its path."""
    found = {}
    for path, module in model.named_modules():
        other = type(module).__name__ == "Conv1D"
        if other or isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            found[f"{path}.weight".lstrip("."), int(other or getattr(module, "transposed", False))] = path
    return found


def peer_reach(model: nn.Module, inputs: Any, seconds: float) -> tuple[Reach, str]:
    """What Torch-Pruning removes from a network that still runs; and what kept it from being tried, if anything."""
    tp, fresh = torch_pruning(), copy.deepcopy(model)  # a forward may leave tensors on a model that cannot be copied
    example = inputs if isinstance(inputs, dict) else inputs[0]
    paths = {module: path for path, module in model.named_modules()}
    try:
        with limited(seconds):
            graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
            groups = {paths[group[0].dep.target.module]: group for group in graph.get_all_groups()}
            shapes = shapes_of(model, inputs)
    except Late:  # some networks it reads without end
        return {}, f"not read in {seconds:g} s"
    except Exception as error:  # the peer may raise anything on a network that it cannot read
        return {}, f"not read: {str(error).strip().splitlines()[0][:80] if str(error) else type(error).__name__}"

    def works(roots: list[str]) -> bool:
        small = copy.deepcopy(fresh)
        others = [small.get_submodule(path) for path in groups if path not in roots]
        try:
            options = {"importance": tp.importance.MagnitudeImportance(), "pruning_ratio": 0.5}
            pruner = tp.pruner.MagnitudePruner(small, example, ignored_layers=others, **options)
            pruner.step()
            if shapes_of(small, inputs) != shapes:
                return False
            for root in roots:  # some it passes over
                dense = graph.get_out_channels(model.get_submodule(root))
                if pruner.DG.get_out_channels(small.get_submodule(root)) < dense:
                    shrunk.add(root)
            return True
        except Exception:  # whatever it is, the network does not run with fewer of these channels
            return False

    kept: list[str] = []
    shrunk: set[str] = set()
    note = ""
    try:
        with limited(seconds):
            for root in working(list(groups), works):
                kept.append(root)
    except Late:
        note = f"not all tried in {seconds:g} s"
    found: Reach = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for path in (root for root in kept if root in shrunk):
        for dep, positions in groups[path]:
            outputs = graph.is_out_channel_pruning_fn(dep.handler)
            for parameter, axis in slices(dep.target.module, outputs):
                if id(parameter) in names:
                    mask = found.setdefault((names[id(parameter)], axis), torch.zeros(parameter.shape[axis]).bool())
                    mask[[int(p) for p in positions if int(p) < len(mask)]] = True
    return found, note


class Late(BaseException):
    """The processor time is used up; no library catches this as an error of its own."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Inside, `Late` is raised once this process has worked for so many seconds."""

    def stop(*_: Any) -> None:
        raise Late

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def working(roots: list[str], works: Callable[[list[str]], bool]) -> Iterator[str]:
    """The groups that work, together with those that are tried with them."""
    half = len(roots) // 2
    if not roots or works(roots):
        yield from roots
    elif half:
        yield from working(roots[:half], works)
        yield from working(roots[half:], works)


def slices(module: Any, outputs: bool) -> list[tuple[Tensor, int]]:
    """Parameters of a module, and the axis along which its outputs, or its inputs, lie."""
    if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        own = [module] if isinstance(module, nn.Parameter) else list(module.parameters(recurse=False))
        return [(p, p.dim() - 1) for p in own]
    axis = int(getattr(module, "transposed", False))
    if not outputs:
        return [(module.weight, 1 - axis)] if getattr(module, "groups", 1) == 1 else []
    return [(module.weight, axis), *([] if module.bias is None else [(module.bias, 0)])]


@torch.no_grad()
def shapes_of(model: nn.Module, inputs: Any) -> list[torch.Size]:
    """Shapes of all tensors that one forward gives."""
    out = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return [leaf.shape for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def shares(model: nn.Module, reach: Reach) -> tuple[float, float]:
    """Share of the channels, and of the parameters, that may go."""
    owned = total = channels = all_channels = 0.0
    for name, parameter in model.named_parameters():
        left = 1.0
        for axis in range(parameter.dim()):
            mask = reach.get((name, axis))
            left *= 1.0 if mask is None else 1 - float(mask.double().mean())
        owned, total = owned + parameter.numel() * (1 - left), total + parameter.numel()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, axis in layers(model):
        mask = reach.get((name, axis))
        channels += 0 if mask is None else int(mask.sum())
        all_channels += parameters[name].shape[axis] if name in parameters else 0
    return channels / max(all_channels, 1), owned / max(total, 1)


def reasons(model: nn.Module, graph: NeuronGraph, ours: Reach, theirs: Reach) -> Counter[str]:
    """demp's reasons for the channels that only the peer can remove."""
    why = {refusal.name: COVERAGE.plain(refusal.reason) for refusal in graph.refused}
    for layer in graph.layers:
        for weight, _ in layer.producers if layer.name in why else ():
            why.setdefault(weight.rpartition(".")[0], why[layer.name])
    found: Counter[str] = Counter()
    for key, path in layers(model).items():
        if key in theirs:
            mine = ours.get(key, torch.zeros_like(theirs[key]))
            found[why.get(path, "model output")] += int((theirs[key] & ~mine).sum())  # the one reason left unsaid
    return +found


def compared(name: str, most: float, seconds: float, everything: bool) -> dict[str, Any] | None:
    """One architecture; None if it has too many parameters."""
    torch.manual_seed(0)
    model, inputs = ZOO.make(name)
    if sum(p.numel() for p in model.parameters()) > most:
        return None
    graph = demp.trace(model, inputs, streams=everything, linear=everything)
    removable = removable_classes(graph)
    ours = {(slot.tensor, slot.axis): removable[slot.classes] for slot in graph.slots}
    theirs, note = peer_reach(model, inputs, seconds)
    only = reasons(model, graph, ours, theirs)
    return {"name": name, "demp": shares(model, ours), "peer": shares(model, theirs), "only": dict(only), "note": note}


def row(record: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [record["name"]] + [f"{100 * record[who][n]:.0f} %" for n in (0, 1) for who in ("demp", "peer")]
    kinds: Counter[str] = Counter()
    for why, channels in record["only"].items():
        kinds[next((kind for part, kind in KINDS.items() if part in why), why)] += channels
    only = "; ".join(f"{kind} ({channels:,})" for kind, channels in kinds.most_common())
    return f"| {' | '.join([*cells, only, record['note']])} |"


def main() -> None:
    """Compare what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--most-parameters", type=float, default=6e6)
    parser.add_argument("--seconds", type=float, default=60.0, help="for finding the peer's groups that fail")
    parser.add_argument("--everything", action="store_true", help="with demp's streams and linear neurons")
    parser.add_argument("--names", nargs="*", default=[], help="architectures of the zoo; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/coverage_peers.jsonl"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    try:
        torch_pruning()
    except UsageError as error:
        sys.exit(str(error))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    done = {r["name"]: r for r in map(json.loads, chosen.out.open() if chosen.out.exists() else ())}
    print(
        "| architecture | channels: demp | Torch-Pruning | parameters: demp | Torch-Pruning | only the latter | note |"
    )
    print(f"|{' --- |' * 7}")
    for name in chosen.names or ZOO.names():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record = done.get(name) or compared(name, chosen.most_parameters, chosen.seconds, chosen.everything)
        if record is not None:
            print(row(record), flush=True)
        if record is not None and name not in done:
            with chosen.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
