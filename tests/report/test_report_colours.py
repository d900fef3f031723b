"""The palette: distinguished with any colour vision, readable on light and on dark paper."""

import math
import re
from itertools import combinations

import pytest

from demp.experiments.report.page import asset

BLINDNESS = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}
"""Machado, Oliveira and Fernandes 2009, severity 1, on linear light."""


def linear(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def luminance(colour):
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def seen(colour, blindness):
    """In Oklab, as someone with that colour vision sees it."""
    light = [sum(w * part for w, part in zip(row, linear(colour), strict=True)) for row in BLINDNESS[blindness]]
    r, g, b = (min(1.0, max(0.0, part)) for part in light)
    long = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)
    middle = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    short = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return (
        0.2104542553 * long + 0.793617785 * middle - 0.0040720468 * short,
        1.9779984951 * long - 2.428592205 * middle + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * middle - 0.808675766 * short,
    )


def schemes():
    """Colours by name, light and the two equal dark ones."""
    blocks = re.findall(r":root[^{]*\{(.*?)\}", asset("page.css"), re.S)
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks]


def test_both_ways_to_dark_are_the_same_colours():
    _, system, chosen = schemes()
    assert system == chosen and len(chosen) == 13


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_are_told_apart_with_any_vision_and_on_the_paper(scheme):
    colours = schemes()[scheme]
    series = [colours[f"s{at}"] for at in range(6)]
    for blindness in BLINDNESS:
        for one, other in combinations(series, 2):
            assert math.dist(seen(one, blindness), seen(other, blindness)) > 0.1, (blindness, one, other)
    assert all(contrast(colour, colours["paper"]) >= 3 for colour in [*series, colours["dense"], colours["accent"]])
    assert contrast(colours["ink"], colours["paper"]) > 12 and contrast(colours["soft"], colours["paper"]) > 4.5
