"""Streams between norms: channels that no activation touches, which norms read and linear layers write.

Such a channel may go like a neuron: it is zero where every writer (embedding, output projections and their biases) is
zero. An RMS norm keeps zeros; a layer norm makes zeros of them where its scale and shift are zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from demp.graph.elements import unique_in_order
from demp.graph.numbering import Numbering
from demp.graph.parts import STREAM
from demp.graph.recording import Recording, Site, marked


@dataclass(frozen=True, eq=False)
class Channels:
    """Those of one stream: their elements, and the modules that normalise them."""

    ids: Tensor
    modules: list[str]


def mark_streams(recording: Recording) -> None:
    """Make a layer of every stream that a norm was seen to read: from now on its channels have an activation."""
    if not recording.streams:
        return
    root = recording.elements.roots()
    for stream in joined(recording, root):
        number = len(recording.sites)
        recording.sites.append(Site(common_module(stream.modules), STREAM, stream.ids, called=True))
        for ids, why in recording.lifted:
            recording.elements.freeze(ids[torch.isin(root[ids], stream.ids)], why)
        mark = recording.elements.site_set(frozenset([number]))
        for at, seen in enumerate(recording.reads):
            recording.reads[at] = marked(seen, torch.isin(root[seen.neurons.ids], stream.ids) * mark)
    recording.streams.clear()


def joined(recording: Recording, root: Tensor) -> list[Channels]:
    """The streams: norms that read the same channels read one."""
    found: list[Channels] = []
    for seen in recording.streams:
        ids, modules = root[seen.channels.ids[seen.channels.sites == 0]], [seen.module]
        for other in [stream for stream in found if bool(torch.isin(ids, stream.ids).any())]:
            found.remove(other)
            ids, modules = torch.cat([other.ids, ids]), other.modules + modules
        found.append(Channels(unique_in_order(ids), modules))
    return found


def added_tensors(recording: Recording, numbering: Numbering, classes: Tensor) -> Iterator[tuple[str, int]]:
    """(tensor, axis) of what is added to a stream as it is: rows of embeddings, positions, vectors."""
    read = {(seen.weight, seen.weight_axis) for seen in recording.reads}
    for name, axes in recording.axes.items():
        for dim, axis in enumerate(axes):
            written = name in recording.tables or (len(axes) > 1 and (name, dim) not in read)
            if written and bool(torch.isin(numbering.of(axis), classes).any()):
                yield name, dim


def layer_norms(recording: Recording, numbering: Numbering, classes: Tensor) -> Iterator[tuple[str, int]]:
    """(scale or shift, axis) of the layer norms over these classes, which only zeros make zeros again."""
    for name in recording.normed:
        for dim, axis in enumerate(recording.axes[name]):  # the scales of several norms may be one table
            if bool(torch.isin(numbering.of(axis), classes[classes > 0]).any()):
                yield name, dim


def common_module(paths: list[str]) -> str:
    """Path of the innermost module that holds all of these."""
    common, *others = (path.split(".") for path in paths)
    for other in others:
        same = [a == b for a, b in zip(common, other, strict=False)]
        common = common[: same.index(False) if False in same else len(same)]
    return ".".join(common)
