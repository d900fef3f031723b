"""Hugging Face Accelerate: a network that shrinks while it learns, and may be resumed. A few seconds.

python examples/accelerate_loop.py
python examples/accelerate_loop.py --resume   # from its checkpoint half-way: the same numbers again
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.nn import functional as F
from torch.utils.data import DataLoader

import demp
import digits
from demp.integrations.accelerate import attach


def main(epochs: int, checkpoint: Path, resume: bool) -> None:
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    train, test = digits.data()
    net = digits.network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.03)
    loader = DataLoader(train, batch_size=64, shuffle=True)
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model, optimizer, loader, schedule = accelerator.prepare(net, optimizer, loader, schedule)

    example = train.tensors[0][:64]
    pruner = attach(
        accelerator, model, optimizer, example_inputs=(example,), total_steps=steps, budget=demp.Budget(flops=0.4)
    )
    if resume:
        accelerator.load_state(str(checkpoint))  # replays the cuts, then loads the weights

    for epoch in range(pruner.step // len(loader), epochs):
        loader.set_epoch(epoch)
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            accelerator.backward(loss)
            optimizer.step()  # the pruner is hooked in here
            schedule.step()
            optimizer.zero_grad()
            accelerator.log(pruner.metrics(), step=pruner.step)
            if pruner.step % len(loader) == 0:
                digits.show(pruner, loss)
        if epoch + 1 == epochs // 2:
            accelerator.save_state(str(checkpoint))

    print(pruner.finish())
    digits.test(net, test)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/accelerate_loop"))
    parser.add_argument("--resume", action="store_true")
    main(**vars(parser.parse_args()))
