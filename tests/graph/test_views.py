"""The view rule against brute force: where does every index of an axis land?"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from demp.graph.regrouping import follow, regroup


@st.composite
def shapes(draw, total: int) -> list[int]:
    """A shape of ``total`` entries, with axes of size one anywhere."""
    sizes = []
    while total > 1:
        size = draw(st.sampled_from([d for d in range(2, total + 1) if total % d == 0]))
        sizes.append(size)
        total //= size
    for at in draw(st.lists(st.integers(0, 4), max_size=3)):
        sizes.insert(min(at, len(sizes)), 1)
    return sizes


@settings(max_examples=300)
@given(st.data())
def test_followed_axes_land_where_the_data_lands(data):
    total = data.draw(st.sampled_from([1, 2, 4, 6, 12, 24, 36]))
    old, new = data.draw(shapes(total)), data.draw(shapes(total))
    groups = regroup(tuple(old), tuple(new))
    assert [dim for dims, _ in groups for dim in dims] == list(range(len(old)))
    assert [size for _, sizes in groups for size in sizes] == new
    start = 0
    for dims, sizes in groups:
        for at, dim in enumerate(dims):
            index = torch.arange(old[dim]).view([-1 if d == dim else 1 for d in range(len(old))])
            moved = index.expand(old).reshape(new)
            landing = follow([old[d] for d in dims], at, sizes)
            if landing is None:
                assert old[dim] == 1 or not any(lies_along(moved, d) for d in range(len(new)))
            else:
                where, line = start + landing[0], landing[1]
                wanted = line.view([-1 if d == where else 1 for d in range(len(new))]).expand(new)
                assert len(line) == new[where] and torch.equal(moved, wanted)
        start += len(sizes)


def lies_along(values: torch.Tensor, dim: int) -> bool:
    """Do the values depend on one axis only?"""
    lines = values.movedim(dim, -1)
    return bool((lines == lines.flatten(0, -2)[0]).all())
