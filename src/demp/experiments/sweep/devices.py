"""Where jobs run: how many at once, on which device, with how many threads."""

import os
from collections.abc import Sequence

import torch

from demp.errors import UsageError
from demp.experiments.sweep.job import Job
from demp.files.checks import check_at_least

VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def places_on(devices: Sequence[str], jobs: int) -> list[str]:
    """Return one place per process: ``jobs`` on each device, or that many where the jobs say.

    Raises:
        UsageError: a device that is not there or named twice, or no process.
    """
    check_at_least("jobs", jobs, 1)
    for device in devices:
        if devices.count(device) > 1:
            raise UsageError(f"the device {device} is named twice; several processes on each device: --jobs 2")
        validate_device(device)
    return [device for _ in range(jobs) for device in devices or [""]]


def kind_of(devices: Sequence[str]) -> str:
    """Return the kind of these devices, as a config names it: cuda for cuda:0 and cuda:1; empty for none.

    Raises:
        UsageError: they are of several kinds.
    """
    kinds = sorted({device.partition(":")[0] for device in devices})
    if len(kinds) > 1:
        raise UsageError(f"devices are {', '.join(devices)}; give those of one kind")
    return "".join(kinds)


def validate_device(device: str) -> None:
    """Make sure that a process can use the device here.

    Raises:
        UsageError: none can.
    """
    kind, _, index = device.partition(":")
    if kind == "cuda":  # without touching it: that takes memory
        there = torch.cuda.device_count()
        if int(index if index.isdecimal() else 0) >= there:
            raise UsageError(f"there is no device {device} here; CUDA devices here: {there}")
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} cannot be used here; write for example cpu or cuda:0") from error


def validate_devices(devices: Sequence[str], jobs: Sequence[Job]) -> None:
    """Make sure that every job gets a device of the kind that its config asks for.

    Raises:
        UsageError: one would get another.
    """
    kinds = {device.partition(":")[0] for device in devices}
    for job in jobs:
        asked = device_of(job)
        if kinds and asked not in ("", "auto") and {asked} != kinds:
            raise UsageError(
                f"the run {job.name} is for {asked}, but --devices are {', '.join(devices)}; leave the number out of "
                "its device, and name devices of its kind only"
            )


def device_of(job: Job) -> str:
    """Return the device in the config of a training; empty for other work."""
    return job.arguments.get("config", {}).get("device", "")


def threads_for(place: str, job: Job) -> int:
    """Return the threads of a process that does this job in this place: 1 on a CPU, 0 (no limit) beside a GPU."""
    device = place or device_of(job)
    return 1 if device in ("", "cpu") or (device == "auto" and not torch.cuda.is_available()) else 0


def environment_of(place: str, threads: int) -> dict[str, str]:
    """Return the environment variables of a process in this place: the one device that it sees is its own."""
    found = dict(os.environ) | ({name: str(threads) for name in THREADS} if threads else {})
    kind, _, index = place.partition(":")
    if kind == "cuda" and index:
        seen = found.get(VISIBLE, "")
        found[VISIBLE] = seen.split(",")[int(index)] if seen else index
    elif kind == "cpu":
        found[VISIBLE] = ""
    return found
