"""How many different things the neurons of each layer say: the effective rank of their correlations.

    .venv/bin/python benchmarks/effective_rank.py --runs RUN [RUN ...]

The exponential of the entropy of the eigenvalues of the correlation matrix, over all positions of 512 images of the
run's test or held-out set, in evaluation mode: the number of neurons where none correlate, 1 where all do. Runs with
``demp train`` or of ``demp compare`` (OUT/runs/NAME).
"""

from functools import partial

import torch
from torch import Tensor, nn

from common import arguments, parsed
from demp.train import artifact

IMAGES, POSITIONS = 512, 4096
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.LeakyReLU)


def effective_rank(values: Tensor) -> float:
    """Of (neurons, positions); neurons that are constant do not count."""
    varied = values[values.std(1) > 1e-6]
    share = torch.linalg.eigvalsh(torch.corrcoef(varied.double())).clamp(min=0)
    share = share[share > 0] / share.sum()
    return float((-(share * share.log()).sum()).exp())


def keep(seen: dict[str, Tensor], name: str, module: nn.Module, args: object, out: Tensor) -> None:
    """Remember what an activation gave."""
    seen[name] = out


@torch.no_grad()
def main() -> None:
    """Print one line per layer: width and effective rank in each run."""
    chosen = parsed(arguments(__doc__, runs={"nargs": "+", "required": True}))
    for path in chosen.runs:
        model, facts = artifact.load(path, trust=False)
        _, test = artifact.test_set(path, facts, torch.device("cpu"))
        images, _ = next(test.batches(IMAGES))
        seen: dict[str, Tensor] = {}
        for name, module in model.eval().named_modules():
            if isinstance(module, ACTIVATIONS):
                module.register_forward_hook(partial(keep, seen, name))
        model(images)
        print(path)
        for name, out in seen.items():
            values = out.transpose(0, 1).flatten(1)
            picked = torch.randperm(values.shape[1], generator=torch.Generator().manual_seed(0))[:POSITIONS]
            print(f"  {name}: {len(values)} neurons, effective rank {effective_rank(values[:, picked]):.1f}")


if __name__ == "__main__":
    main()
