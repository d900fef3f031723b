"""Which known call or sum of a module runs now: by its place in the code, or else by its number."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import nn

from demp.graph.parts import Read
from demp.graph.places import Place, outermost, traced
from demp.graph.sums import raise_if_checkpointed, require_as_traced

Key = TypeVar("Key")


class Lookup(Generic[Key]):
    """The plans of one module during one call of it.

    There are no places under torch.compile, in files of earlier versions, and where other code runs than was traced.
    """

    def __init__(self, plans: Mapping[Key, Any], module: nn.Module) -> None:
        self.plans, self.module = plans, module
        self.recorded, self.by_place = False, False
        self.done: set[Key] = set()
        self.unknown: set[Key] = set()
        self._at: dict[str, Key] = {}
        self._turns: dict[str, set[int]] = {}
        self._seen: dict[str, int] = {}
        if not torch.compiler.is_compiling():
            self.recorded = torch.is_grad_enabled()
            self.by_place = all(plan.places for plan in plans.values())
            for key, plan in plans.items():
                for place in plan.places:
                    turn, _, turns = place.rpartition("/")
                    self._at[turn] = key
                    self._turns.setdefault(turn.rpartition("#")[0], set()).add(int(turns))

    def find(self, place: Place | None, numbered: Key, may_be: Callable[[Any], bool], what: str) -> Key | None:
        """The plan of what runs now, if any. ``numbered`` is its key by number; ``may_be`` asks whether it fits a plan.

        Raises:
            RuntimeError: a backward would run it again without its plan.
        """
        key = self._find(place, numbered, may_be)
        if key is not None and place is not None and place.checkpointed and self.recorded:
            raise_if_checkpointed(self.module, what)
        return key

    def _find(self, place: Place | None, numbered: Key, may_be: Callable[[Any], bool]) -> Key | None:
        if self.by_place and place is not None:
            self.by_place = any(place.outermost == outermost(known) for known in self._turns)
        if not self.by_place or place is None:
            self.done |= {numbered} & self.plans.keys()
            return numbered if numbered in self.plans else None
        turn = self._seen.get(place.text, 0)
        self._seen[place.text] = turn + 1
        key = self._at.get(f"{place.text}#{turn}")
        if key is not None:
            self.done.add(key)
        elif not torch.jit.is_tracing():  # type: ignore[attr-defined]  # there sizes are tensors
            self.unknown |= {known for known, plan in self.plans.items() if may_be(plan)}
        return key

    def check_turns(self, what: str) -> None:
        """After the call.

        Raises:
            RuntimeError: what is planned stands in a loop that ran more or fewer times than in the trace.
        """
        for place, turns in self._turns.items() if self.by_place else ():
            if self._seen.get(place, 0) not in {0, *turns}:
                where = place.partition(":")[0]
                require_as_traced(self.module, f"{what} in {where}", self._seen[place], turns)


class Turn(NamedTuple):
    """One of the times at which the code of a module comes by one place, which a loop does several times."""

    path: str
    run: int
    """Which call of the module this is."""
    is_sum: bool
    """A residual sum, or another call."""
    text: str
    """See `Place`."""


class Seats:
    """Where the reads of a graph stand that no weight takes part in: sums and calls of the modules' own code."""

    def __init__(self, reads: Iterable[Read], ran: Mapping[str, int]) -> None:
        self._ran, self._turns = ran, Counter[Turn]()
        self._at: dict[str, dict[tuple[bool, str], Any]] = {}
        several = set()  # runs of one module, whose reads lie at the same places
        for read in reads:
            seat: Any = read.seat or read.call
            for place in read.places if seat else ():
                at, key = self._at.setdefault(seat[0], {}), (read.seat is not None, place.rpartition("/")[0])
                if at.setdefault(key, seat) != seat:
                    several.add(seat[0])
        self._at = {path: at for path, at in self._at.items() if path not in several}
        self._outermost = {path: {outermost(place) for _, place in at} for path, at in self._at.items()}

    def seat(self, numbered: Any, is_sum: bool) -> Any:
        """The seat at which what runs now stands; ``numbered`` where no place is known, None if it is no read."""
        path = numbered[0]
        if path not in self._at:
            return numbered
        text = traced()
        if outermost(text) not in self._outermost[path]:
            return numbered
        turn = Turn(path, self._ran.get(path, 0), is_sum, text)
        self._turns[turn] += 1
        return self._at[path].get((is_sum, f"{text}#{self._turns[turn] - 1}"))
