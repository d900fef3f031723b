"""Linear neurons: outputs of weights that other weights read before any activation (the bottlenecks of MobileNetV2).

A ReLU never leaves them at zero, but zero they may be: where what makes them is zero, or has faded to zero on the way
to a budget. Such a neuron may go like any other.
"""

import torch

from demp.graph.elements import unique_in_order
from demp.graph.parts import LINEAR
from demp.graph.recording import Recording, Site, marked
from demp.graph.unoffered import output_axes, owner


def mark_linear(recording: Recording) -> None:
    """Make a layer of what each weight makes and others read as it is: from now on it has an activation, the identity.

    What stays anyway makes no layer. A sum or mean over such neurons is no reader that they may leave: there they stay.
    Nor may those leave that something makes other numbers of where they are zero (a sigmoid, a number that is added).
    """
    root, reasons = recording.elements.resolve()
    read = torch.zeros(recording.elements.count, dtype=torch.bool, device="cpu")
    stays = read.clone()
    stays[list(reasons)] = True
    for seen in recording.reads:
        bare = root[seen.neurons.ids[seen.neurons.sites == 0]]
        (read if seen.call is None else stays)[bare] = True
    marks = torch.zeros(recording.elements.count, dtype=torch.long, device="cpu")
    for contraction in recording.contractions:
        for dim in output_axes(recording, contraction):
            assert contraction.weight is not None
            made = unique_in_order(root[recording.axes[contraction.weight][dim].ids])
            found = made[read[made] & ~stays[made] & (marks[made] == 0)]
            if len(found):
                number = len(recording.sites)
                recording.sites.append(Site(owner(contraction.weight), LINEAR, found, called=True))
                marks[found] = recording.elements.site_set(frozenset([number]))
    for ids, why in recording.lifted:
        recording.elements.freeze(ids[marks[root[ids]] != 0], why)
    recording.reads[:] = [marked(seen, marks[root[seen.neurons.ids]]) for seen in recording.reads]
