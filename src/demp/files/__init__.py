"""Files: names and formats of what runs and sweeps leave, how a file is replaced, what a value may be; torch-free."""

from demp.files.replacement import (
    HALVES,
    UNFINISHED,
    replacing_file,
    replacing_folder,
    settled,
    try_to_hold,
    write,
    write_once,
)

__all__ = [
    "HALVES",
    "UNFINISHED",
    "replacing_file",
    "replacing_folder",
    "settled",
    "try_to_hold",
    "write",
    "write_once",
]
