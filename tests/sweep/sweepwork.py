"""Work for jobs in tests: plain functions, called by name."""

import os
from pathlib import Path


def doubled(arguments, folder, observers):
    """Twice a number; how often it was called stands in its folder."""
    folder.mkdir(exist_ok=True)
    calls = folder / "calls"
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    return {"twice": 2 * arguments["number"], "calls": len(calls.read_text())}


def failing(arguments, folder, observers):
    """Always an error."""
    raise ArithmeticError("it broke\nbadly")


def leaving(arguments, folder, observers):
    """Takes its process along."""
    print("last words", flush=True)
    os._exit(7)


def unwritable(arguments, folder, observers):
    """No JSON."""
    return {"path": Path()}
