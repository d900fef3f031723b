"""Write docs/coverage.md: what demp offers and refuses, feature by feature and architecture by architecture.

    .venv/bin/python tests/zoo/write_coverage.py

No arithmetic is done: every model is only traced. The numbers are the same on every machine.
"""

import re
import sys
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

import demp
from architectures import make, names
from feature_parts import doubled
from features import FEATURES

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "coverage.md"

INTRODUCTION = """# Coverage

What demp offers to remove, and what it refuses and why; beside Torch-Pruning: [numbers](numbers.md). A refusal costs
sparsity, never correctness. The tables are written by

```
python tests/zoo/write_coverage.py
```

## Features of PyTorch code

One small model each. Where something is offered, the test makes random neurons really dead, cuts them twice over and
compares the outputs in double precision: `pytest tests/zoo/test_features.py -k NAME`.

| feature (name of the test) | demp |
| --- | --- |
"""

MODELS = """
Three rules that the table does not show:

* **Grouped convolutions.** Every group must keep as many channels. Either whole groups go, with their channels on
  both sides (where a group has no more outputs than there are groups, as in depthwise convolutions and ResNeXt), or the
  channels at one position of every group go together. What goes together counts as one neuron.
* **Activations in several steps** (`x * sigmoid(x)`, the tanh form of GELU, `x * (x > 0)`, `maximum(x, 0)`) are
  recognised as a tensor that meets a function of itself. Sigmoid alone, or `clamp(min=1)`, is no activation here: it is
  not zero at zero, so a neuron behind it is never dead.
* **Forwards that decide by values.** Neurons in sight of parameters that the example inputs did not reach stay. Give
  example inputs that reach every branch and every expert. Experts of transformers are offered where they run one by one
  or in batched products (`model.set_experts_implementation("eager")`, as Mixtral's row does, or `"batched_mm"`). The
  kernels of `grouped_mm` take rows of whole 16 bytes alone, so that one neuron cannot go: prune with another
  implementation.

## Architectures

Random weights, small inputs. "Owned" is the share of parameters that belong to some removable neuron (a weight between
two layers counts if either of its neurons may go). The zoo test cuts random dead neurons of all layers at once, traces
again and cuts a second time, and compares outputs in double precision: `pytest tests/zoo/test_zoo.py`.

| architecture | parameters | owned | neurons offered | refused | reasons (neurons) |
| --- | --- | --- | --- | --- | --- |
"""


def feature_row(name: str) -> str:
    """One line of the first table."""
    torch.manual_seed(0)  # the experts that example inputs reach
    model, inputs = FEATURES[name].make()
    graph = demp.trace(model.double().eval(), doubled(inputs))
    offered = sum(int(layer.removable.sum()) for layer in graph.layers)
    refused = [refusal for refusal in graph.refused if refusal.name in graph.index]  # of layers alone
    reasons = ", ".join(dict.fromkeys(plain(refusal.reason) for refusal in refused))
    if not offered:
        verdict = f"refused: {reasons}" if reasons else "refused: no activation that keeps zero at zero"
    else:
        verdict = "supported" + (f", but for: {reasons}" if reasons else "")
    return f"| {name} | {verdict} |"


def model_row(name: str) -> str:
    """One line of the second table."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, inputs = make(name)
        seen = demp.inspect(model, inputs)
        graph = demp.trace(model, inputs)
    refused = [refusal for refusal in graph.refused if refusal.name in graph.index]  # of layers alone
    reasons: Counter[str] = Counter()
    for refusal in refused:
        reasons[plain(refusal.reason)] += refusal.neurons
    why = "; ".join(f"{reason} ({n:,})" for reason, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
    owned = f"{100 * seen.owned_parameters / seen.parameters:.1f} %"
    return (
        f"| {name} | {seen.parameters:,} | {owned} | {seen.removable:,} | {seen.neurons - seen.removable:,} | {why} |"
    )


def plain(reason: str) -> str:
    """A reason without the place."""
    return re.sub(r" \((at|by) [^)]*\)", "", re.sub(r"in sight of \S+,", "in sight of a parameter,", reason))


def document() -> str:
    """The whole page."""
    features = "\n".join(feature_row(name) for name in FEATURES)
    models = "\n".join(model_row(name) for name in names())
    return f"{INTRODUCTION}{features}\n{MODELS}{models}\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document())
