"""The processes that ``torchrun`` started: one run, shared between them."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from demp.errors import UsageError
from demp.parallel import Context, everyone
from demp.train.torchrun import launched


@contextmanager
def joined(device: str) -> Iterator[Context]:
    """All processes of this run, in the caller's process group or in one that ends with it; or one process alone."""
    if not launched() or dist.is_initialized():
        yield everyone()
        return
    place_of(device)  # a wrong device is reported before anyone waits
    kind = torch.device(device).type
    backend = "gloo" if kind == "cpu" else f"cpu:gloo,{kind}:{dist.get_default_backend_for_device(kind)}"
    store, rank, world_size = next(rendezvous("env://"))
    dist.init_process_group(backend, store=fresh(store, rank, world_size), rank=rank, world_size=world_size)
    try:
        yield everyone()
    finally:
        dist.destroy_process_group()


def fresh(store: Any, rank: int, world_size: int) -> Any:
    """A part of the store that only these processes use.

    torchrun may give restarted processes the store of the dead ones, with their addresses in it. Each process writes a
    new name; once all have acknowledged the same list of names, all of them are alive.
    """
    store.set(f"demp/name/{rank}", uuid.uuid4().hex)
    while True:
        names = [store.get(f"demp/name/{other}").decode() for other in range(world_size)]
        prefix = "demp/" + "-".join(names)
        store.set(f"{prefix}/{rank}", "here")
        try:
            store.wait([f"{prefix}/{other}" for other in range(world_size)], timedelta(seconds=1))
            return PrefixStore(prefix, store)
        except dist.DistStoreError:  # some name was that of a dead process: read again
            continue


def place_of(device: str) -> torch.device:
    """The device of this process: ``cuda`` is the GPU with its local number.

    Raises:
        UsageError: a device with a number, where every process needs one of its own.
    """
    place = torch.device(device)
    if not launched() or place.type == "cpu":
        return place
    if place.index is not None:
        raise UsageError(f"device is {device!r}, but each process needs a GPU of its own; set --device {place.type}")
    place = torch.device(place.type, int(os.environ.get("LOCAL_RANK", "0")))
    torch.accelerator.set_device_index(place)
    return place


def share_of(batch_size: int, accumulate: int, context: Context) -> tuple[int, int]:
    """Which images of every batch are this process's: every ``world_size``-th from ``rank``; the two numbers.

    Raises:
        UsageError: the shares would not be equal, and the mean of gradients not that of the batch.
    """
    rank, world_size = context.rank, context.world_size
    if batch_size % (world_size * accumulate):
        parts = f", in {accumulate} parts each" if accumulate > 1 else ""
        raise UsageError(
            f"batch_size is {batch_size}, which {world_size} processes{parts} cannot share equally; set --batch-size "
            f"to a multiple of {world_size * accumulate}"
        )
    return rank, world_size
