"""Union-find on whole vectors against a plain loop."""

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from demp.graph.class_sets import ClassSets
from demp.graph.elements import Elements, components


def by_hand(count: int, edges: list[tuple[int, int]]) -> list[int]:
    """Smallest element of each component, by relabelling until nothing moves."""
    root = list(range(count))
    for _ in range(count):
        for a, b in edges:
            low = min(root[a], root[b])
            root = [low if r in (root[a], root[b]) else r for r in root]
    return root


@settings(max_examples=60)
@given(st.integers(1, 12), st.data())
def test_components(count, data):
    node = st.integers(0, count - 1)
    edges = data.draw(st.lists(st.tuples(node, node), max_size=15))
    a, b = torch.tensor(edges, dtype=torch.long).view(-1, 2).t()
    assert components(count, a, b).tolist() == by_hand(count, edges)


def test_a_long_chain_in_both_directions():
    line = torch.arange(5000)
    assert components(5000, line[:-1], line[1:]).eq(0).all()
    assert components(5000, line[1:], line[:-1]).eq(0).all()


def test_a_freeze_reaches_everything_united():
    elements = Elements()
    a, b, c = elements.new(3), elements.new(3), elements.new(3)
    elements.union(a.ids, b.ids.flip(0))
    elements.union(b.ids[:1], c.ids[:1])
    elements.freeze(c.ids[:1], "why")
    root, reasons = elements.resolve()
    frozen = [int(root[i]) in reasons for i in range(9)]
    assert frozen == [False, False, True, True, False, False, True, False, False]
    assert set(reasons.values()) == {"why"}


def test_the_first_of_several_reasons_counts():
    elements = Elements()
    a, b = elements.new(2), elements.new(2)
    elements.union(a.ids[:1], b.ids[:1])
    elements.freeze(b.ids, "first")
    elements.freeze(a.ids, "second")
    assert elements.resolve()[1] == {0: "first", 1: "second", 3: "first"}


def test_sets_of_classes_are_those_of_a_dictionary():
    draw = random.Random(0)
    for _ in range(50):
        size = draw.randrange(1, 12)
        sets, expected = ClassSets(size), [set[int]() for _ in range(size)]
        for item in range(draw.randrange(6)):
            chosen = [draw.randrange(size) for _ in range(draw.randrange(2 * size))]
            sets.add(torch.tensor(chosen, dtype=torch.long), item)
            for one in chosen:
                expected[one].add(item)
        asked = [draw.randrange(size) for _ in range(draw.randrange(size))]
        assert sets.of(torch.tensor(asked, dtype=torch.long)) == set().union(*(expected[one] for one in asked))


def test_parts_balance_only_if_they_are_the_same_classes_in_the_same_order():
    def frozen(pairs: list[tuple[int, int]]) -> bool:
        elements = Elements()
        whole = elements.new(4)
        for a, b in pairs:
            elements.union(whole.ids[a : a + 1], whole.ids[b : b + 1])
        elements.must_balance(whole.ids, 2, "unequal")
        return bool(elements.resolve()[1])

    assert not frozen([(0, 2), (1, 3)])
    assert frozen([(0, 3), (1, 2)])
    assert frozen([(0, 2)])


def test_site_sets_are_numbered_once_and_merge_per_position():
    elements = Elements()
    a, b = elements.site_set(frozenset([0])), elements.site_set(frozenset([1]))
    assert elements.site_set(frozenset([0])) == a
    merged = elements.merge_sites(torch.tensor([0, a, a]), torch.tensor([b, b, a]))
    assert [elements.sites_of(m) for m in merged.tolist()] == [frozenset([1]), frozenset([0, 1]), frozenset([0])]
