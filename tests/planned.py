"""Networks whose forward depends on how many neurons there are, in calls that a cut plans."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Parts(nn.Module):
    """A module that takes its input in parts, by ``chunk`` and by slices, and reads the first."""

    def __init__(self, one: nn.Module) -> None:
        super().__init__()
        self.one = one

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([F.relu(self.one(a)), b[:, 1:], b[:, :1]], 1)


class Numbers(nn.Module):
    """A view with a number, a mean and a convolution along the channels (ECA)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.mix = width, nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).view(-1, self.width, 6, 6)
        x = x * (1 + x.mean(1, keepdim=True))
        gate = torch.sigmoid(self.mix(x.mean((2, 3))[:, None])[:, 0])
        return x * gate[:, :, None, None]


class Shuffled(nn.Module):
    """A channel shuffle, which runs along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.channel_shuffle(x, 4)


class Planned(nn.Module):
    """All of these one after the other, on images of 3 x 6 x 6."""

    def __init__(self, shuffle: bool = False) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.shuffle = Shuffled() if shuffle else nn.Identity()
        self.numbers, self.parts, self.head = Numbers(), Parts(nn.Conv2d(4, 4, 1)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.head(self.parts(self.numbers(self.shuffle(x))).mean((2, 3)))


class Rows(nn.Module):
    """A hidden layer of which half is read by another one; no statistics of the batch."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first, self.parts = nn.Linear(6, width), Parts(nn.Linear(width // 2, 4))
        self.head = nn.Linear(4 + width // 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.head(self.parts(x) * (1 + x.mean(1, keepdim=True)))
