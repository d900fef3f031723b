"""How a saved model carries out its sums and calls, checked before any of it is put on a module."""

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from demp.artifact.form import is_size, items, need, sizes, table
from demp.graph.calls import KINDS, CallPlan

AXES = 16
"""An axis has a smaller number."""
NUMBER = re.compile(r"\d{1,8}")
PLACE = re.compile(r"[^#/]*#\d{1,8}/\d{1,8}")
"""See ``graph.places``."""
LISTS = ("sizes", "select", "expect", "training", "grid", "block")
COUNTS = ("calls", "ndim", "dense")
"""Fields of a planned call that hold numbers of things."""


def check_joins(joins: Any, longest: int) -> None:
    """Planned sums: module -> number -> how it is carried out. No tensor is longer than ``longest``."""
    for path, plans in items(joins, "joins"):
        for number, plan in items(plans, f"joins.{path}"):
            need(NUMBER.fullmatch(number), f"the join {number!r} of {path!r} is no number")
            check_join(table(plan, f"join {number}"), f"the join {number} of {path!r}", longest)


def check_join(plan: Mapping[str, Any], what: str, longest: int) -> None:
    """How a residual sum is carried out."""
    known = {"stream", "axis", "widths", "runs"}
    need(plan.keys() - {"sums", "training", "places"} == known, f"{what} has other parts than a join")
    need(is_size(plan.get("sums", 0)), f"the module of {what} has no number of sums")
    sizes(plan.get("training", []), f"the numbers of sums in training of {what}")
    check_places(plan, what)
    need(type(plan["stream"]) is int and plan["stream"] in (0, 1), f"the stream of {what} is neither operand")
    need(is_size(plan["axis"]) and plan["axis"] < AXES, f"the axis of {what} is none")
    widths = sizes(plan["widths"], f"widths of {what}")
    need(len(widths) == 2 and max(widths) <= longest, f"{what} is wider than any tensor")
    need(isinstance(plan["runs"], list), f"runs of {what} are no list")
    ends = [0, 0]
    for run in plan["runs"]:
        to, at, length = (*sizes(run, f"a run of {what}"), 0, 0, 0)[:3]
        need(len(run) == 3 and length, f"a run of {what} is none")
        inside = to + length <= widths[0] and at + length <= widths[1]
        need(inside and to >= ends[0] and at >= ends[1], f"the runs of {what} do not fit its widths")
        ends = [to + length, at + length]


def check_calls(calls: Any) -> None:
    """Planned calls: module -> ``kind:number`` -> how it is carried out."""
    for path, plans in items(calls, "calls"):
        for key, plan in items(plans, f"calls.{path}"):
            what = f"the call {key!r} of {path!r}"
            kind, _, number = key.partition(":")
            need(kind in KINDS.values() and NUMBER.fullmatch(number), f"{what} has no kind and number")
            check_call(table(plan, what), what, kind)


def check_call(plan: Mapping[str, Any], what: str, kind: str) -> None:
    """How a call is carried out."""
    known = {field.name for field in fields(CallPlan)}
    need({"kind", "axis", "width"} <= plan.keys() <= known, f"{what} has other parts than a call")
    need(plan["kind"] == kind, f"{what} is of another kind")
    need(is_size(plan["axis"]) and plan["axis"] < AXES, f"the axis of {what} is none")
    width, scale = plan["width"], plan.get("scale", 1.0)
    need(is_size(width) and all(is_size(plan.get(name, 0)) for name in COUNTS), f"{what} has no number of neurons")
    need(type(scale) in (int, float) and math.isfinite(scale) and scale >= 0, f"the scale of {what} is none")
    lists = {name: sizes(plan.get(name, []), f"{name} of {what}") for name in LISTS}
    expand = plan.get("expand", [])
    need(isinstance(expand, list) and all(is_size(at, -1) and at < width for at in expand), f"{what} sees what is not")
    need(not expand or all(at < len(expand) for at in lists["select"]), f"{what} keeps what it does not make")
    taken = lists["sizes"]
    need(kind != "split" or (taken and sum(taken) == width), f"the parts of {what} are not its neurons")
    need(kind != "slice" or (len(taken) == 2 and sum(taken) <= width), f"the part of {what} is none of its neurons")
    need(kind != "view" or len(taken) in (0, 2), f"the view of {what} makes no axis")
    need(len(lists["block"]) in (0, 5), f"the axes of {what} are no block")
    need(len(lists["expect"]) != 1, f"what {what} is to make has no length")
    check_places(plan, what)


def check_places(plan: Mapping[str, Any], what: str) -> None:
    """Where it stands in the code."""
    places = plan.get("places", [])
    well = isinstance(places, list) and all(isinstance(place, str) and PLACE.fullmatch(place) for place in places)
    need(well, f"the places of {what} are none")
