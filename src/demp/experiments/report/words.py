"""Numbers as a reader wants them, with a real minus sign and spaces that do not break."""

from collections.abc import Sequence

NONE = "–"
MINUS, THIN = "\u2212", "\u202f"
"""Minus sign; narrow space that keeps a number and its unit together."""
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def signed(text: str) -> str:
    """A hyphen before a number becomes a minus."""
    return text.replace("-", MINUS)


def digits(value: float, places: int = 1) -> str:
    """Format a number with thousands separators: 1234.5 becomes 1,234.5."""
    return signed(f"{value:,.{places}f}")


def short(value: float | None) -> str:
    """Three significant digits and a prefix: 2,797,034 -> 2.8 M."""
    if value is None:
        return NONE
    for factor, prefix in PREFIXES:
        if abs(value) >= factor:
            return f"{three(value / factor)}{THIN}{prefix}"
    return three(value)


def three(value: float) -> str:
    """Three significant digits without a tail of zeros."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        return signed(f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}")
    return signed(f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e"))


def percent(value: float | None, places: int = 1) -> str:
    """Format a share as a percentage: 0.6412 becomes 64.1 %."""
    return NONE if value is None else f"{digits(100 * value, places)}{THIN}%"


def change(ratio: float | None) -> str:
    """The change to a ratio of the dense number: 0.36 -> −64 %."""
    if ratio is None:
        return NONE
    points = 100 * (ratio - 1)
    shown = f"{points:+.0f}" if abs(points) >= 9.5 or abs(points) < 0.05 else f"{points:+.1f}"
    return f"{signed('0' if shown in ('+0', '-0') else shown)}{THIN}%"


def points(difference: float | None, images: float | None = None) -> str:
    """A difference of accuracies: -0.0061 -> −0.6 points of accuracy; no more than one of ``images`` is none."""
    if difference is None:
        return NONE
    if images and abs(difference) * images <= 1 + 1e-6:
        return f"no difference beyond one image in {images:,.0f}"
    shown = f"{100 * difference:+.1f}"
    return f"{signed('0.0' if shown in ('+0.0', '-0.0') else shown)} points of accuracy"


def times(ratio: float | None) -> str:
    """Format a ratio with two decimals: 0.512 becomes 0.51×."""
    return NONE if ratio is None else f"{ratio:.2f}×"


def duration(seconds: float | None) -> str:
    """Format seconds in a suitable unit: 90 becomes 1.5 min."""
    if seconds is None:
        return NONE
    size, unit = time_unit(seconds)
    return f"{three(seconds / size)}{THIN}{unit}"


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit in which so many seconds are a handy number."""
    for size, unit in ((172_800, "d"), (7200, "h"), (120, "min")):
        if seconds >= size:
            return {"d": 86_400.0, "h": 3600.0, "min": 60.0}[unit], unit
    return 1.0, "s"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Join names for a sentence ("a, b and c") and shorten long lists."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def plural(count: int, noun: str) -> str:
    """Format a count with its noun: 1 run, 2 runs."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
