"""Where in a module's code a call stands: so a planned call is known, whatever else runs before it."""

import functools
import itertools
import os
import sys
import traceback
import zlib
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

BETWEEN = (str(Path(torch.__file__).parent) + os.sep, str(Path(__file__).parent) + os.sep)
"""Code that runs between a call of the user's and what notes it."""
COMPILER, GENERATED = str(Path(torch.__file__).parent / "_dynamo") + os.sep, "<eval_with_key>"
"""Code that runs a compiled graph, and that of the graph, in which what is planned was carried out when it was made."""
CHECKPOINT = str(Path(torch.__file__).parent / "utils" / "checkpoint.py")
PLANNED = "planned_forward", str(Path(__file__).with_name("joins.py"))
"""The function that runs a module's code under its plans, and its file."""
CALL = nn.Module._call_impl.__code__
STEP = "|"


def line_of(frame: FrameType, line: int) -> str:
    """A line of a function as a reader finds it: ``Attention.forward (attention.py, line 41)``."""
    code = frame.f_code
    return f"{code.co_qualname} ({Path(code.co_filename).name}, line {line})"


def is_between(frame: FrameType) -> bool:
    """Is it code of torch or of demp, or of no file?"""
    return frame.f_code.co_filename.startswith((*BETWEEN, "<"))


def failing_line(error: BaseException) -> str:
    """The innermost line of the user's code, or of a library's, in which an error was raised; empty if in none."""
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if not is_between(frame)]
    return line_of(*frames[-1]) if frames else ""


def running_line() -> str:
    """The line of the user's code that runs now; empty outside of any."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_between(frame):
        frame = frame.f_back
    return "" if frame is None else line_of(frame, frame.f_lineno)


class Place(NamedTuple):
    """Where a call stands."""

    text: str
    """The instructions that led to it, the innermost first: each function with a checksum, and the text in it."""
    checkpointed: bool
    """Was a part of the module's forward, not the module, given to `torch.utils.checkpoint`?"""

    @property
    def outermost(self) -> str:
        """The function that the module's call has entered."""
        return outermost(self.text)


def outermost(text: str) -> str:
    """The last function of a place."""
    return text.rpartition(STEP)[2].rpartition(":")[0]


@functools.lru_cache(maxsize=4096)
def named(code: CodeType) -> str:
    """A function's name and a checksum of its instructions: a spot means the same in every process that has them."""
    return f"{code.co_qualname}:{zlib.crc32(code.co_code):08x}"


@functools.lru_cache(maxsize=65536)
def spot(code: CodeType, instruction: int) -> str:
    """Lines and columns of what an instruction stands for, from the function's first line.

    Not its offset: Python calls by another instruction of the same text once it has learned what is called.
    """
    first, last, start, end = next(itertools.islice(code.co_positions(), instruction // 2, None))
    lines = [None if line is None else line - code.co_firstlineno for line in (first, last)]
    return ".".join(map(str, (*lines, start, end)))


def traced() -> str:
    """The place of the call that runs now, seen from the call of the module around it."""
    steps = []
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not CALL:
        if not frame.f_code.co_filename.startswith(BETWEEN):
            steps.append(f"{named(frame.f_code)}:{spot(frame.f_code, frame.f_lasti)}")
        frame = frame.f_back
    return STEP.join(steps)


def running(module: nn.Module) -> bool:
    """Does the code of ``module`` run now under its plans, in this thread?"""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if is_planned(frame, module):
            return True
        frame = frame.f_back
    return False


def is_planned(frame: Any, module: nn.Module) -> bool:
    """Is this the frame in which the code of ``module`` runs under its plans?"""
    return (frame.f_code.co_name, frame.f_code.co_filename) == PLANNED and frame.f_locals["self"] is module


def own(module: nn.Module) -> Place | None:
    """The place of the call that runs now in the code of ``module``; None if a module in it or a hook calls.

    None also in a compiled graph.
    """
    steps, checkpointed, generated = [], False, False
    frame: Any = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        generated = generated or code.co_filename.startswith(GENERATED)
        if code is CALL or (generated and code.co_filename.startswith(COMPILER)):
            return None
        if is_planned(frame, module):
            break
        checkpointed = checkpointed or code.co_filename == CHECKPOINT
        if not code.co_filename.startswith(BETWEEN):
            steps.append(f"{named(code)}:{spot(code, frame.f_lasti)}")
        frame = frame.f_back
    return Place(STEP.join(steps), checkpointed)
