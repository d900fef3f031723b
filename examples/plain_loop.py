"""A plain loop: a network that shrinks while it learns, and may be resumed. A few seconds.

python examples/plain_loop.py
python examples/plain_loop.py --resume   # from its checkpoint half-way: the same numbers again
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

import demp
import digits


def main(steps: int, checkpoint: Path, resume: bool) -> None:
    train, test = digits.data()
    model = digits.network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    example = train.tensors[0][:64]
    pruner = demp.DemP(model, optimizer, example_inputs=(example,), total_steps=steps, budget=demp.Budget(flops=0.4))
    parts = {"pruner": pruner, "model": model, "optimizer": optimizer, "schedule": schedule}

    if resume:
        saved = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():  # the pruner first: its cuts give the weights their shapes
            part.load_state_dict(saved[name])

    while pruner.step < steps:
        batch = torch.randint(len(train), (64,), generator=torch.Generator().manual_seed(pruner.step))
        x, y = train[batch]
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # the pruner is hooked in here
        schedule.step()
        if pruner.step % (steps // 10) == 0:
            digits.show(pruner, loss)
        if pruner.step == steps // 2:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            torch.save({name: part.state_dict() for name, part in parts.items()}, checkpoint)

    print(pruner.finish())
    digits.test(model, test)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/plain_loop.pt"))
    parser.add_argument("--resume", action="store_true")
    main(**vars(parser.parse_args()))
