"""An action killed with SIGKILL at every line of some files: what is on disk must be whole then."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import demp

ROOT = Path(demp.__file__).parent
DONE, RAISED = 0, 3


def killed_at_every_line(files: tuple[str, ...], action: Callable[[], Any]) -> Iterator[int]:
    """Run the action in a fork of this process that is killed at line 1, 2, ... that it passes in ``files`` of demp.

    Yields after every kill; ends when the action reaches its end, which it must without an error.
    """
    names = {str(ROOT / file) for file in files}
    number = 0
    while True:
        number += 1
        pid = os.fork()
        if pid == 0:
            counted(names, number, action)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == DONE, f"the action failed at line {number}"
            assert number > 1, "no line of these files was passed"
            return
        assert os.WTERMSIG(status) == signal.SIGKILL
        yield number


def counted(names: set[str], number: int, action: Callable[[], Any]) -> None:
    """Do it, and be killed at that line; never returns."""
    left = number

    def local(frame: Any, event: str, arg: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        return local

    code = DONE
    try:
        sys.settrace(lambda frame, event, arg: local if frame.f_code.co_filename in names else None)
        action()
    except BaseException:
        code = RAISED
    finally:
        sys.settrace(None)
        os._exit(code)


# In a process without torch, which forks quickly ----------------------------------------------------------


def folder(root: Path) -> None:
    """A folder of two files, replaced: at every kill the old pair or the new one; in the end nothing else."""
    from demp.files import replacement as files

    def save(text: str) -> None:
        with files.replacing_folder(root / "model") as fresh:
            for name in ("a", "b"):
                (fresh / name).write_text(text)

    def pair() -> tuple[str, ...]:
        return tuple(file.read_text() for file in sorted(files.settled(root / "model").iterdir()))

    save("old")
    found = []
    for _ in killed_at_every_line(("files/replacement.py",), lambda: save("new")):
        found.append(pair())
        assert found[-1] in (("old", "old"), ("new", "new")), found[-1]
        save("old")
        assert os.listdir(root) == ["model"], os.listdir(root)
    assert set(found) == {("old", "old"), ("new", "new")} and len(found) > 40, found


def first_folder(root: Path) -> None:
    """The same where there was none: at every kill nothing, or the whole folder."""
    from demp.files import replacement as files

    def save() -> None:
        with files.replacing_folder(root / "model") as fresh:
            (fresh / "a").write_text("new")

    found = set()
    for _ in killed_at_every_line(("files/replacement.py",), save):
        there = files.settled(root / "model")
        found.add(there.exists() and (there / "a").read_text())
        files.shutil.rmtree(there, ignore_errors=True)
    assert found == {False, "new"} and os.listdir(root) == ["model"], (found, os.listdir(root))


def file(root: Path) -> None:
    """A file, replaced, with an old one there and without."""
    from demp.files import replacement as files

    path = root / "file"
    for old in (b"old", None):
        path.unlink(missing_ok=True)
        found = set()
        for _ in killed_at_every_line(("files/replacement.py",), lambda: files.write(path, "new" * 1000)):
            found.add(path.read_bytes() if path.exists() else None)
            assert set(os.listdir(root)) <= {"file", ".file.new"}, os.listdir(root)
            path.unlink(missing_ok=True) if old is None else path.write_bytes(old)
        assert found == {old, b"new" * 1000} or found == {None, old, b"new" * 1000}, found
        assert os.listdir(root) == ["file"], os.listdir(root)


if __name__ == "__main__":
    {"folder": folder, "first_folder": first_folder, "file": file}[sys.argv[1]](Path(sys.argv[2]))
