"""Chase literally: channels in rounds with redistribution, weights one after the other."""

import math

Place = tuple[str, int]


def channel_share(step: int, last: int, s_c: float) -> float:
    """S_c (1 - (1 - t / t_last)^3)."""
    return s_c * (1 - (1 - step / last) ** 3)


def removed(scores: dict[str, dict[int, float]], minimum: dict[str, int], wanted: int) -> dict[str, set[int]]:
    """Who of the channels that are there goes: what a layer at its minimum withholds, the other layers give."""
    going: dict[str, set[int]] = {layer: set() for layer in scores}
    closed: set[str] = set()
    while len(closed) < len(scores):
        missing = wanted - sum(len(channels) for channels in going.values())
        ranked = [
            (score, layer, channel)
            for layer, channels in scores.items()
            if layer not in closed
            for channel, score in channels.items()
            if channel not in going[layer]
        ]
        chosen = sorted(ranked, key=lambda one: one[0])[: max(missing, 0)]
        residual = 0
        for layer in scores:
            mine = [(score, channel) for score, name, channel in chosen if name == layer]
            room = max(0, len(scores[layer]) - len(going[layer]) - minimum[layer])
            if len(mine) > room:
                residual += len(mine) - room
                closed.add(layer)
            going[layer] |= {channel for _, channel in sorted(mine)[:room]}
        if not residual:
            break
    return going


def rewired(
    size: dict[Place, float], slope: dict[Place, float], there: set[Place], base: int, ceiling: int, drop: float | None
) -> set[Place]:
    """One update: down to ``base``, or by the share ``drop``; then up to ``ceiling`` (to ``base`` in an exchange)."""
    left = min(len(there), base)
    if drop is not None:
        left = min(left, len(there) - math.ceil(drop * len(there)))
        ceiling = base
    held = set(sorted(there, key=lambda place: -size[place])[:left])
    others = sorted((place for place in size if place not in held), key=lambda place: -slope[place])
    return held | set(others[: ceiling - left])
