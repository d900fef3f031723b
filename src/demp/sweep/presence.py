"""Who leads a sweep at the moment: processes on one machine, or on several that share a folder."""

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from demp.errors import UsageError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl: Any = None

BEAT_SECONDS = 15.0
SILENT_SECONDS = 600.0
"""A leader on another machine that is silent for so long is taken for dead."""


class Presence:
    """This process among the leaders: a name of its own, a lock, a heartbeat.

    The lock falls when the process dies, so that on its own machine its death is known at once. Other machines go by
    the time of its file, which the heartbeat renews; both times are of the file system's clock.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.token = folder, uuid.uuid4().hex
        for number in count(1):
            self.name = f"{here()}-{number}"
            self._handle = os.open(self._file(self.name), os.O_RDWR | os.O_CREAT, 0o644)
            if lock(self._handle):
                break
            os.close(self._handle)
        about = {"token": self.token, "host": socket.gethostname(), "process": os.getpid(), "since": time.time()}
        self._write(json.dumps(about))
        self._left = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _write(self, text: str) -> None:
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text.encode(), 0)
        os.fsync(self._handle)

    def _beat(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            with suppress(OSError):  # a share that is away for a moment
                os.utime(self._file(self.name))

    def leave(self) -> None:
        """Say that this leader is gone."""
        self._left.set()
        self._heart.join()
        self._write("")
        os.close(self._handle)

    def lives(self, name: str, token: str) -> bool:
        """Is the leader with this name and token at work?"""
        if name == self.name:
            return token == self.token
        file = self._file(name)
        try:
            if token_in(file) != token or not token:
                return False
            if name.rpartition("-")[0] != here():
                return self._now() - file.stat().st_mtime < SILENT_SECONDS
            handle = os.open(file, os.O_RDWR)
        except OSError:
            return False
        try:
            return not lock(handle)
        finally:
            os.close(handle)

    def _now(self) -> float:
        """The file system's time, however wrong this machine's clock."""
        with suppress(OSError):
            os.utime(self._file(self.name))
        return self._file(self.name).stat().st_mtime


def token_in(file: Path) -> str:
    """The token of the leader that a file tells of; empty when it left."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("token", ""))
    except ValueError:
        return ""


def here() -> str:
    """A name for this machine since it was started: containers with one kernel and one name share it, and see locks."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    mark = boot.read_text() if boot.is_file() else str(uuid.getnode())
    host = "".join(sign if sign.isalnum() else "_" for sign in socket.gethostname())
    return f"{host}-{hashlib.sha256(mark.encode()).hexdigest()[:6]}"


def lock(handle: int) -> bool:
    """Take the lock of an open file for as long as it is open; False where another process has it.

    Raises:
        UsageError: the file system has no locks.
    """
    if fcntl is None:
        raise UsageError("this system has no file locks of the kind that a sweep needs; use Linux or macOS")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UsageError(f"this folder's file system cannot lock files ({error.strerror}); choose another") from error
    return True
