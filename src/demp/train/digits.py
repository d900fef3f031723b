"""1,797 handwritten digits of 8 x 8 pixels, which come with scikit-learn."""

import gzip
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from demp.train.extras import need


def values() -> Tensor:
    """(1797, 65) float64: 64 pixels from 0 to 16, row by row, and the digit.

    Read from scikit-learn's file, since importing scikit-learn takes longer than a short run; where the file lies
    elsewhere, through its loader.
    """
    found = importlib.util.find_spec("sklearn")
    folders = (found.submodule_search_locations or ()) if found is not None else ()
    for file in (Path(folder, "datasets", "data", "digits.csv.gz") for folder in folders):
        if file.is_file():
            with gzip.open(file, "rt", encoding="ascii") as lines:
                return torch.tensor([[float(value) for value in line.split(",")] for line in lines]).double()
    bundle = need("sklearn.datasets").load_digits()
    return torch.cat([torch.from_numpy(bundle.data), torch.from_numpy(bundle.target).double().unsqueeze(1)], dim=1)


def splits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images (N, 1, 8, 8) in bytes and labels (N,), for training and for testing: a fifth of each class is test."""
    table = values()
    pixels = table[:, :-1].mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    labels = table[:, -1].long()
    order = torch.zeros_like(labels)
    for digit in range(10):
        of_class = labels == digit
        order[of_class] = torch.arange(int(of_class.sum()))
    test = order % 5 == 4
    return (pixels[~test], labels[~test]), (pixels[test], labels[test])
