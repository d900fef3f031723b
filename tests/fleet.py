"""A few processes with a gloo group between them, kept for all tests of a module."""

import gc
import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

PATIENCE = timedelta(seconds=120)
"""For a collective, and for the answer of a rank."""


class Fleet:
    """Calls a function on every rank, and gives back what each rank returned."""

    def __init__(self, folder: Path, ranks: int = 2) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(ranks):
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, str(folder / "store"), rank, ranks), daemon=True)
            process.start()
            self._pipes.append(mine)
            self._processes.append(process)

    def __call__(self, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((function, args, options))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(2 * PATIENCE.total_seconds()), f"rank {rank} does not answer"
            answers.append(pipe.recv())
        errors = [f"rank {rank}:\n{error}" for rank, (error, _) in enumerate(answers) if error is not None]
        assert not errors, "\n".join(errors)
        return [answer for _, answer in answers]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def serve(pipe: Any, store: str, rank: int, ranks: int) -> None:
    """What a rank does: run what comes through the pipe."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=PATIENCE)
    gc.freeze()
    while True:
        function, args, options = pipe.recv()
        torch.manual_seed(0)
        try:
            answer = (None, function(*args, **options))
        except Exception:
            answer = (traceback.format_exc(), None)
        gc.collect()
        pipe.send(answer)
