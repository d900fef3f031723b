"""Lightning Fabric: a network that shrinks while it learns, and may be resumed. A few seconds.

python examples/fabric_loop.py
python examples/fabric_loop.py --resume   # from its checkpoint half-way: the same numbers again
"""

import argparse
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch.nn import functional as F
from torch.utils.data import DataLoader

import demp
import digits
from demp.integrations.fabric import attach, load


def main(epochs: int, checkpoint: Path, resume: bool) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    train, test = digits.data()
    net = digits.network()
    order = torch.Generator()
    loader = fabric.setup_dataloaders(DataLoader(train, batch_size=64, shuffle=True, generator=order))
    steps = epochs * len(loader)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model, optimizer = fabric.setup(net, optimizer)

    example = train.tensors[0][:64]
    pruner = attach(
        fabric, model, optimizer, example_inputs=(example,), total_steps=steps, budget=demp.Budget(flops=0.4)
    )
    state = {"model": model, "optimizer": optimizer, "schedule": schedule, "pruner": pruner}
    if resume:
        load(fabric, checkpoint, state)  # fabric.load, but the cuts are replayed before the weights are loaded

    for epoch in range(pruner.step // len(loader), epochs):
        order.manual_seed(epoch)
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            fabric.backward(loss)
            optimizer.step()  # the pruner is hooked in here
            schedule.step()
            optimizer.zero_grad()
            fabric.log_dict(pruner.metrics(), step=pruner.step)
            if pruner.step % len(loader) == 0:
                digits.show(pruner, loss)
        if epoch + 1 == epochs // 2:
            fabric.save(checkpoint, state)

    print(pruner.finish())
    digits.test(net, test)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/fabric_loop.ckpt"))
    parser.add_argument("--resume", action="store_true")
    main(**vars(parser.parse_args()))
