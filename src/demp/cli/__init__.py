"""The command line, ``demp VERB``: see ``demp --help``.

Exit codes: 0 done, 1 failed, 2 the user's mistake, 130 interrupted, 141 stopped since nobody reads its output any more.
"""

import json
import os
import select
import sys
from collections.abc import Sequence

from demp import __version__
from demp.errors import DempError, UsageError
from demp.train.extras import need
from demp.train.stopping import TrainingInterrupted
from demp.train.torchrun import is_main_process

DONE, FAILED, MISTAKE, INTERRUPTED, UNREAD = 0, 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; every error is one sentence on stderr unless ``--debug`` is given."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] in (["--version"], ["-V"]):
            print(f"demp {__version__}", flush=True)
            return DONE
        need("tyro")
        need("rich")
        if arguments[:1] == ["report"]:  # reads files only: starts where torch does not
            from demp.cli.report import parse
        else:
            from demp.cli.commands import parse
        command = parse(arguments or ["--help"])
        command.find_own_code()
        result = command.run()
        if command.json and is_main_process():
            print(json.dumps(result))
        print(end="", flush=True)
        return DONE
    except SystemExit as stop:  # tyro's own way out: help, or an unknown flag
        return stop.code if isinstance(stop.code, int) else MISTAKE
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return UNREAD
        if "--debug" in arguments:
            raise
        return _explain(error, as_json="--json" in arguments)


def _nobody_reads() -> bool:
    """Has the reader of stdout left, as in ``demp ... | head``? Then what is still to be written goes nowhere."""
    if not hasattr(select, "poll"):
        return False
    try:
        place = sys.stdout.fileno()
    except (AttributeError, OSError):  # none, or one that is no file (a notebook's)
        return False
    end = select.poll()
    end.register(place, 0)
    if left := bool(end.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), place)
    return left


def _explain(error: BaseException, as_json: bool) -> int:
    code, text = _exit_code_and_text(error)
    print(f"demp: {text}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": text, "exit_code": code}))
    return code


def _exit_code_and_text(error: BaseException) -> tuple[int, str]:
    if isinstance(error, TrainingInterrupted):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, UsageError):
        return MISTAKE, str(error)
    if isinstance(error, DempError):
        return FAILED, str(error)
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return FAILED, f"cannot read or write {place}{error.strerror}"
    kind = type(error).__name__
    return FAILED, f"unexpected {kind}: {error} (run it again with --debug for the traceback)"
