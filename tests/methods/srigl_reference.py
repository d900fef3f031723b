"""SRigL literally, one neuron and one weight after the other, from the formulas in the method's docstring."""

import math

Rows = list[list[float]]
Flags = list[list[bool]]


def largest(scores: Rows, count: int) -> set[tuple[int, int]]:
    """The places of the highest scores of a layer; of equal ones the first."""
    places = [(j, i) for j, row in enumerate(scores) for i in range(len(row))]
    return set(sorted(places, key=lambda p: -scores[p[0]][p[1]])[:count])


def fraction(step: int, total: int, alpha: float = 0.3, end: float = 0.75) -> float:
    """f_t = alpha / 2 (1 + cos(pi t / T_end))."""
    return alpha / 2 * (1 + math.cos(math.pi * step / (end * total)))


def update(w: Rows, g: Rows, mask: Flags, budget: int, f: float, gamma: float, of: str, *, ablates: bool) -> Flags:
    """One layer at one update."""
    neurons, dense = len(w), len(w[0])
    n = sum(sum(row) for row in mask)
    size, slope = [[abs(v) for v in row] for row in w], [[abs(v) for v in row] for row in g]
    nonzero = sum(v > 0 for row in size for v in row)
    keep = min(n - int(n * f), nonzero)
    salient = largest(size, keep) | largest(slope, n - keep)
    counts = [sum(place[0] == j for place in salient) for j in range(neurons)]
    reference = budget // neurons if of == "constant" else dense
    least = max(1, int(gamma * reference)) if ablates and gamma else 0
    must_stay = math.ceil(budget / dense)
    least = min(least, sorted(counts, reverse=True)[must_stay - 1])
    active = [j for j in range(neurons) if counts[j] >= least]
    k = budget // len(active)
    among = [row if j in active else [0.0] * dense for j, row in enumerate(size)]
    large = {(j, i) for j, i in largest(among, keep) if among[j][i] > 0}
    new = [[False] * dense for _ in range(neurons)]
    for j in active:
        mine = sorted((i for i in range(dense) if (j, i) in large), key=lambda i: -size[j][i])[:k]
        others = sorted((i for i in range(dense) if i not in mine), key=lambda i: -slope[j][i])
        for i in mine + others[: k - len(mine)]:
            new[j][i] = True
    return new
