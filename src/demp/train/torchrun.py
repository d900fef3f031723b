"""What ``torchrun`` tells the processes that it starts, read from the environment."""

import os

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
RESTARTS = "TORCHELASTIC_RESTART_COUNT"


def launched() -> bool:
    """Did torchrun start several processes, of which this is one?"""
    return all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def is_main_process() -> bool:
    """Is this the process that prints? Known before there is a process group, and after."""
    return not launched() or os.environ["RANK"] == "0"


def restarted() -> bool:
    """Did torchrun start this process again after one of them died?"""
    return launched() and int(os.environ.get(RESTARTS, "0")) > 0
