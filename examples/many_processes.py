"""One loop for one process or many: the network shrinks on all of them alike.

    python examples/many_processes.py
    torchrun --nproc-per-node 2 examples/many_processes.py

Both print the same widths: the processes share every batch, and a neuron goes only if it is dead on each of them. In
double precision, so that rounding does not decide who lives.
"""

import os

import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import demp

STEPS, BATCH = 200, 64


def main() -> None:
    """Train, shrink, and print what is left."""
    many = "RANK" in os.environ
    if many:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if many else (0, 1)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else "cpu"
    if torch.cuda.is_available():
        torch.cuda.set_device(device)

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2)).to(device)
    model = DistributedDataParallel(small) if many else small
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner = demp.DemP(
        model, optimizer, example_inputs=(batch(0)[0].to(device),), total_steps=STEPS, peak_strength=3e-3
    )

    for step in range(STEPS):
        x, y = (part[rank::ranks].to(device) for part in batch(step))
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # every process checks and cuts here, in the same steps

    report = pruner.finish()
    if rank == 0:
        print(f"{report.neurons_after} of 256 neurons left, widths {small[0].out_features} and {small[2].out_features}")
    if many:
        distributed.destroy_process_group()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole batch of a step, the same on every process."""
    x = torch.randn(BATCH, 20, generator=torch.Generator().manual_seed(step))
    return x, (x[:, 0] * x[:, 1] > 0).long()


if __name__ == "__main__":
    main()
