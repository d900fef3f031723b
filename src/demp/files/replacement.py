"""Files and folders that are replaced whole: whenever the writer is killed, a reader finds the old one or the new one.

A file is written under another name, synced and renamed. A folder takes two renames; between them the old one lies
beside its place, and whoever looks for it next puts it back (`settled`).
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # a system without file locks
    fcntl: Any = None

UNFINISHED = ".new"
"""What a file is called while it is written: ``.NAME.new``; of a writer that was killed, until the next one."""

HALVES = re.compile("[\ud800-\udfff]")
"""Of characters: JSON can name them, no file can hold them."""


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write into, which takes the place of ``path`` when all went well.

    Raises:
        OSError: it could not be written; what was there is as it was.
    """
    fresh = path.with_name(f".{path.name}{UNFINISHED}")
    with opened_alone(fresh) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    sync(path.parent)


def write(path: Path, content: str | bytes) -> None:
    """Replace a file; text as UTF-8, with U+FFFD for halves of characters, which no file can hold."""
    if isinstance(content, str):
        content = HALVES.sub("\ufffd", content).encode("utf-8")
    with replacing_file(path) as file:
        file.write(content)


def write_once(path: Path, content: str) -> None:
    """Write a file whole, unless it is there: the first of several processes counts."""
    if path.exists():
        return
    fresh = path.with_name(f".{path.name}{UNFINISHED}")
    with opened_alone(fresh) as file:
        file.write(content.encode("utf-8"))
        file.flush()
        with suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()


@contextmanager
def opened_alone(path: Path) -> Iterator[BinaryIO]:
    """Open an empty file to write into, once no other process does; what a killed one left in it is deleted."""
    while True:
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb")
        wait_for_lock(file.fileno())
        if is_at(file.fileno(), path):
            break
        file.close()  # another process was done with it meanwhile, and renamed it
    with file:
        file.truncate(0)
        yield file


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside ``path`` that takes its place when all went well; delete what killed writers left.

    Raises:
        OSError: it could not be written; what was there is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    settled(path)
    fresh = beside(path, "new")
    try:
        with ExitStack() as stack:
            with alone_in(path.parent):  # so that nobody takes it for what a killed writer left
                fresh.mkdir()
                stack.enter_context(alone_in(fresh))  # tells others that its writer lives
            yield fresh
            for file in (*fresh.rglob("*"), fresh):
                sync(file)
            with alone_in(path.parent):
                exchange(path, fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def exchange(path: Path, fresh: Path) -> None:
    """Put ``fresh`` in the place of ``path`` by two renames; delete what was there and what killed writers left.

    Raises:
        OSError: it cannot be put there; what was there is back in its place.
    """
    old = beside(path, "old")
    if path.exists():
        path.rename(old)
    try:
        fresh.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    sync(path.parent)
    for left in leftovers(path, "old"):
        left.rename(gone := beside(path, "gone"))  # never again taken for what a killed writer left
        shutil.rmtree(gone, ignore_errors=True)
    for left in (*leftovers(path, "gone"), *leftovers(path, "new")):
        if is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)


def settled(path: Path) -> Path:
    """Return the folder ``path``, put back if its writer was killed between the two renames.

    Where it cannot be put back (a disk that is only read), the place where it lies.
    """
    if os.path.lexists(path) or not leftovers(path, "old"):
        return path
    with alone_in(path.parent):
        old = leftovers(path, "old")
        if os.path.lexists(path) or not old:
            return path
        try:
            old[-1].rename(path)
        except OSError:
            return old[-1]
    return path


def beside(path: Path, kind: str) -> Path:
    """Return an unused name for a folder that was or will be at ``path``."""
    return path.parent / f".{path.name}.{kind}-{uuid.uuid4().hex[:12]}"


def leftovers(path: Path, kind: str) -> list[Path]:
    """Return the folders of that kind beside ``path``, the latest last."""
    found: list[tuple[float, Path]] = []
    for folder in path.parent.glob(f".{escape(path.name)}.{kind}-*"):
        with suppress(FileNotFoundError):  # its writer is done with it
            found.append((folder.stat().st_mtime, folder))
    return [folder for _, folder in sorted(found)]


def is_abandoned(folder: Path) -> bool:
    """Return whether no living process writes into this folder."""
    if fcntl is None:
        return True
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        return take_lock(handle)
    finally:
        os.close(handle)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of this folder, after any other process that has it."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        wait_for_lock(handle)
        yield
    finally:
        os.close(handle)


def try_to_hold(path: Path) -> int | None:
    """Return an open file with its lock taken, made if it is not there; None if another process has the lock.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not take_lock(handle):
            os.close(handle)
            return None
        if is_at(handle, path):
            return handle
        os.close(handle)  # whoever held it took it away meanwhile


def is_at(handle: int, path: Path) -> bool:
    """Return whether the open file is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def take_lock(handle: int) -> bool:
    """Take the lock of an open file for as long as it is open; False where another has it. True without locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def wait_for_lock(handle: int) -> None:
    """Take the lock of an open file, after any other process that has it."""
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
