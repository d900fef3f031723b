"""``subprocess`` for processes of Python that begin as a fork of this one: torch is imported, and a second is saved.

Everything else is as with a new process: arguments, environment, folder, streams, signals, session, exit code. It needs
a process without threads of its own, as the tests are. That a new interpreter works as well is for the few tests that
use ``subprocess`` itself.
"""

import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
import types
import warnings
from typing import Any

PIPE = subprocess.PIPE


class Popen(subprocess.Popen):
    """``[sys.executable, "-c", code, ...]``, ``[sys.executable, "-m", module, ...]`` or a script."""

    def __init__(self, args: list[str], **options: Any) -> None:
        assert args[0] == sys.executable and not options.get("shell")
        self.wanted = {name: options.get(name) for name in ("cwd", "env", "start_new_session")}
        super().__init__(args, **options)

    def _execute_child(self, args: Any, *rest: Any) -> None:  # type: ignore[override]
        """Fork, where the base class would start a program; the ends of pipes are six numbers in a row."""
        ends = next(rest[i : i + 6] for i in range(len(rest) - 5) if all(type(x) is int for x in rest[i : i + 6]))
        (into, to_child, from_child, out, from_error, error) = ends
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if self.pid == 0:
            become(args[1:], (into, out, error), [to_child, from_child, from_error], **self.wanted)
        self._child_created = True
        for mine in {into, out, error} - {-1}:
            os.close(mine)


def run(args: list[str], **options: Any) -> subprocess.CompletedProcess:
    """``subprocess.run`` with such a process."""
    check, timeout = options.pop("check", False), options.pop("timeout", None)
    if options.pop("capture_output", False):
        options |= {"stdout": PIPE, "stderr": PIPE}
    with Popen(args, **options) as process:
        out, error = process.communicate(timeout=timeout)
    done = subprocess.CompletedProcess(args, process.returncode, out, error)
    if check:
        done.check_returncode()
    return done


def become(
    words: list[str], streams: tuple[int, int, int], others: list[int], cwd: Any, env: Any, start_new_session: Any
) -> None:
    """In the fork: be the process that was asked for, and end."""
    code = 1
    try:
        if start_new_session:
            os.setsid()
        for place, given in enumerate(streams):
            if given >= 0:
                os.dup2(given, place)
        for number in {*streams, *others} - {-1, 0, 1, 2}:
            os.close(number)
        if cwd:
            os.chdir(cwd)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        forget()
        code = execute(words)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def forget() -> None:
    """Leave behind what the tests have set in this process."""
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "r" if n == 0 else "w", closefd=False) for n in range(3))
    sys.stderr.reconfigure(line_buffering=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    for name in (None, "demp"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING if name is None else logging.NOTSET)


def execute(words: list[str]) -> int:
    """Run the code, module or script; the exit code."""
    first = sys.path[0:1] if words[0] in ("-c", "-m") else [os.path.dirname(os.path.abspath(words[0]))]
    sys.path[:0] = [*first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            main = types.ModuleType("__main__")
            sys.modules["__main__"] = main
            exec(compile(words[1], "<string>", "exec"), vars(main))
        elif words[0] == "-m":
            sys.argv = [words[1], *words[2:]]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    return 0
