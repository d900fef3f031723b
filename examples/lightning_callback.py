"""Lightning: a network that shrinks while it learns, and may be resumed. A few seconds.

python examples/lightning_callback.py
python examples/lightning_callback.py --resume   # from its checkpoint half-way: the same numbers again
"""

import argparse
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler

import demp
import digits
from demp.integrations.lightning import DemPCallback


class Task(L.LightningModule):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.net, self.steps = digits.network(), steps

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.03)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Show(L.Callback):
    def __init__(self, pruning: DemPCallback) -> None:
        self.pruning = pruning

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        digits.show(self.pruning.pruner, trainer.callback_metrics["loss"])


def main(epochs: int, checkpoint: Path, resume: bool) -> None:
    train, test = digits.data()
    shuffled = DistributedSampler(train, num_replicas=1, rank=0)  # the Trainer tells it the epoch, also after resuming
    loader = DataLoader(train, batch_size=64, sampler=shuffled)
    task = Task(epochs * len(loader))
    pruning = DemPCallback(example_inputs=(train.tensors[0][:64],), budget=demp.Budget(flops=0.4))
    keep = ModelCheckpoint(
        checkpoint, filename="{epoch}", save_top_k=-1, every_n_epochs=epochs // 2, enable_version_counter=False
    )
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, logger=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[pruning, Show(pruning), keep],
    )  # fmt: skip
    half = checkpoint / f"epoch={epochs // 2 - 1}.ckpt"
    trainer.fit(task, loader, ckpt_path=half if resume else None)  # replays the cuts, then loads the weights
    print(pruning.pruner.history[-1])
    digits.test(task, test)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/lightning_callback"))
    parser.add_argument("--resume", action="store_true")
    main(**vars(parser.parse_args()))
