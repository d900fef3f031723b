"""Networks whose code depends on how many neurons there are, or treats each of them alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nets
from nets import Forward

WIDTH = 8
DRAW = torch.Generator().manual_seed(0)
IMAGE, TOKENS, ROWS = (torch.randn(*shape, generator=DRAW) for shape in ((2, 3, 6, 6), (2, 5, 6), (4, 6)))


class Given(Forward):
    """A forward of one input, as `torch.fx` needs it."""

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)


def conv(inputs: int = 3, outputs: int = WIDTH, size: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def on_map(function, reads: int = WIDTH, **parts) -> tuple[nn.Module, tuple]:
    """relu(bn(conv(x))) goes through ``function``, into a convolution with a norm and a linear layer."""

    def forward(s, x):
        h = function(s, F.relu(s.bn(s.conv(x))))
        return s.head(F.relu(s.next_bn(s.next(h))).mean((2, 3)))

    more = {"next": conv(reads, 6), "next_bn": nn.BatchNorm2d(6), "head": nn.Linear(6, 2)}
    return Given(forward, conv=conv(), bn=nn.BatchNorm2d(WIDTH), **more, **parts), (IMAGE,)


def on_rows(function, reads: int = WIDTH, **parts) -> tuple[nn.Module, tuple]:
    """relu(fc(x)) goes through ``function`` into a linear layer."""
    head = nn.Linear(reads, 2)
    return Given(lambda s, x: s.head(function(s, F.relu(s.fc(x)))), fc=nn.Linear(6, WIDTH), head=head, **parts), (ROWS,)


def halves(s, h):
    a, b = h.chunk(2, 1)
    return torch.cat([F.relu(s.one(a)), b, F.relu(s.two(b))], 1)


def sized(s, h):
    a, b = h.split((s.c, s.d), 1)
    return torch.cat([F.relu(s.one(a)), b], 1)


def sliced(s, h):
    return torch.cat([h[:, 5:], F.relu(s.one(h[:, :3])), h[:, 3:5]], 1)


def narrowed(s, h):
    return torch.cat([h.narrow(1, 4, 4), F.relu(s.one(h.narrow(1, 0, 4)))], 1)


def bottle2net(s, h):
    """Res2Net: every part but the first also sees what the part before became."""
    parts, done = h.split(s.c, 1), []
    for number, part in enumerate(parts):
        last = done[-1] + part if number > 1 else part
        done.append(F.relu(s.mix[number - 1](last)) if number else part)
    return torch.cat(done, 1)


def messages(s, h):
    """Messages along edges, summed at their targets, as torch_geometric does it."""
    source, target = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 2, 3, 0, 2])
    sent = h[source]
    index = target.view(-1, 1).expand_as(sent)
    return h + h.new_zeros(h.shape).scatter_add_(0, index, sent)


def added(s, h):
    source, target = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 2, 3, 0, 2])
    return h + torch.zeros(len(h), h.shape[1], dtype=h.dtype).index_add_(0, target, h[source])


def unpooled(s, h):
    small, where = F.max_pool2d(h, 2, return_indices=True)
    return F.max_unpool2d(small, where, 2)


def sampled(s, h):
    theta = torch.eye(2, 3, dtype=h.dtype).expand(len(h), 2, 3) * 0.9
    return F.grid_sample(h, F.affine_grid(theta, list(h.shape), align_corners=False), align_corners=False)


def spectrum(s, h):
    return torch.fft.irfft2(torch.fft.rfft2(h) * 0.5, s=h.shape[-2:])


def best(s, h):
    top = h.flatten(2).topk(3, 2)[0]
    return h + h.flatten(2).cummax(2)[0].view_as(h) + top.mean(2)[:, :, None, None]


def chosen(s, h):
    """Positions of a router, the same for all channels."""
    flat = h.flatten(2)
    where = torch.tensor([3, 1, 2]).view(1, 1, 3).expand(len(h), h.shape[1], 3)
    return h + flat.gather(2, where).sum(2)[:, :, None, None]


def attended(s, h):
    """Every channel is mixed over space, by weights that do not come from it."""
    weights = s.where.softmax(-1).expand(len(h), -1, -1)
    return torch.einsum("bcp,bpq->bcq", h.flatten(2), weights).view_as(h)


def cbam(s, h):
    h = h * torch.sigmoid(s.up(F.relu(s.down(h.mean((2, 3), keepdim=True)))))
    seen = torch.cat([h.mean(1, keepdim=True), torch.max(h, 1, keepdim=True)[0]], 1)
    return h * torch.sigmoid(s.where(seen))


def eca(s, h):
    y = s.mix(h.mean((2, 3))[:, None])
    return h * torch.sigmoid(y)[:, 0, :, None, None]


class RMS(nn.Module):
    """RMSNorm as language models write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def with_numbers(made: tuple[nn.Module, tuple], **numbers: int) -> tuple[nn.Module, tuple]:
    for name, number in numbers.items():
        setattr(made[0], name, number)
    return made


def mixes() -> nn.ModuleList:
    return nn.ModuleList(conv(2, 2) for _ in range(3))


def gated(halves) -> tuple[nn.Module, tuple]:
    """A gate and what it gates come out of one linear layer, and a view takes them apart."""

    def forward(s, x):
        a, b = halves(s.fc(x), x.shape[:-1])
        return s.head(F.relu(a) * b).mean(1)

    return Given(forward, fc=nn.Linear(6, 2 * WIDTH), head=nn.Linear(WIDTH, 2)), (TOKENS,)


GATES = {
    "unbind": lambda h, lead: h.view(*lead, 2, -1).unbind(-2),
    "unbind, by a number": lambda h, lead: h.view(*lead, 2, WIDTH).unbind(2),
    "unflatten": lambda h, lead: h.unflatten(-1, (2, WIDTH)).unbind(-2),
    "index": lambda h, lead: (h.view(*lead, 2, -1)[..., 0, :], h.view(*lead, 2, -1)[..., 1, :]),
    "axes moved": lambda h, lead: h.reshape(*lead, 2, WIDTH).permute(2, 0, 1, 3),
    "chunk of a view": lambda h, lead: [part.squeeze(-2) for part in h.view(*lead, 2, -1).chunk(2, -2)],
}

CASES = {
    "chunk": lambda: on_map(halves, 12, one=conv(4, 4), two=conv(4, 4)),
    "split by attributes": lambda: with_numbers(on_map(sized, 9, one=conv(3, 4)), c=3, d=5),
    "split by a number": lambda: with_numbers(on_map(bottle2net, 8, mix=mixes()), c=2),
    "slices": lambda: on_map(sliced, 9, one=conv(3, 4)),
    "narrow": lambda: on_map(narrowed, 8, one=conv(4, 4)),
    "tensor_split": lambda: on_map(lambda s, h: torch.cat(h.tensor_split([3], 1)[::-1], 1)),
    "channel shuffle": lambda: on_map(lambda s, h: s.mix(h), mix=nn.ChannelShuffle(2)),
    "functional channel shuffle": lambda: on_map(lambda s, h: F.channel_shuffle(h, 4)),
    "maxout": lambda: on_rows(lambda s, h: h.view(-1, 4, 2).amax(2), 4),
    "hard-coded view": lambda: on_rows(lambda s, h: h.view(-1, WIDTH)),
    "a map out of a linear layer": lambda: (
        Forward(
            lambda s, x: s.head(F.relu(s.bn(s.fc(x).view(-1, 5, 2, 2))).mean((2, 3))),
            fc=nn.Linear(6, 20), bn=nn.BatchNorm2d(5), head=nn.Linear(5, 2),
        ),
        (ROWS,),
    ),
    "group norm": lambda: on_map(lambda s, h: F.silu(s.n(s.c(h))), n=nn.GroupNorm(4, WIDTH), c=conv(WIDTH, WIDTH)),
    "one group per channel": lambda: on_map(lambda s, h: s.n(h), n=nn.GroupNorm(WIDTH, WIDTH)),
    "pixel shuffle": lambda: on_map(lambda s, h: F.relu(s.c(F.pixel_shuffle(h, 2))), 4, c=conv(2, 4)),
    "pixel unshuffle": lambda: on_map(lambda s, h: F.pixel_unshuffle(h, 2), 32),
    "unfold and fold": lambda: on_map(lambda s, h: F.fold(F.unfold(h, 3, padding=1), (6, 6), 3, padding=1)),
    "circular padding": lambda: on_map(lambda s, h: F.pad(h, (1, 1, 1, 1), mode="circular")),
    "circular padding of a convolution": lambda: on_map(
        lambda s, h: F.relu(s.mix(h)), mix=conv(8, 8, padding_mode="circular")
    ),
    "circular padding in one dimension": lambda: on_map(
        lambda s, h: h + F.relu(s.mix(h.flatten(2))).view_as(h),
        mix=nn.Conv1d(8, 8, 5, padding=2, padding_mode="circular"),
    ),
    "circular padding in three dimensions": lambda: on_map(
        lambda s, h: F.relu(s.mix(h[:, :, None])).mean(2),
        mix=nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1), padding_mode="circular"),
    ),
    "uneven circular padding": lambda: on_map(lambda s, h: nn.CircularPad2d((2, 0, -1, 3))(h)),
    "max unpool": lambda: on_map(unpooled),
    "grid sample": lambda: on_map(sampled),
    "Fourier transform over space": lambda: on_map(spectrum),
    "top k and cummax over space": lambda: on_map(best),
    "gather over space": lambda: on_map(chosen),
    "einsum over space": lambda: on_map(attended, where=nn.Parameter(torch.randn(1, 36, 36))),
    "messages by scatter_add": lambda: on_rows(messages),
    "messages by index_add": lambda: on_rows(added),
    "dense adjacency": lambda: (
        Forward(lambda s, x, a: s.head(a @ F.relu(s.fc(a @ x))), fc=nn.Linear(6, WIDTH), head=nn.Linear(WIDTH, 2)),
        (ROWS, torch.rand(4, 4)),
    ),
    "L2 norm": lambda: on_map(lambda s, h: F.normalize(h, dim=1)),
    "L1 norm": lambda: on_map(lambda s, h: h / (h.norm(1, dim=1, keepdim=True) + 1)),
    "mean over channels": lambda: on_map(lambda s, h: h * h.mean(1, keepdim=True)),
    "max over everything": lambda: on_map(lambda s, h: h / (1 + h.max())),
    "count of active neurons": lambda: on_map(lambda s, h: h * (h > 0).sum(1, keepdim=True)),
    "spatial attention": lambda: on_map(cbam, down=nn.Conv2d(8, 3, 1), up=nn.Conv2d(3, 8, 1), where=conv(2, 1)),
    "ECA": lambda: on_map(eca, mix=nn.Conv1d(1, 1, 3, padding=1)),
    "RMSNorm in steps": lambda: on_rows(lambda s, h: s.n(h), n=RMS(WIDTH)),
    **{
        f"into {kind.__name__}": lambda kind=kind: (
            Forward(
                lambda s, x: s.head(s.mix(F.relu(s.fc(x)))[0].mean(1)),
                fc=nn.Linear(6, 8), mix=kind(8, 4, 2, batch_first=True, bidirectional=True), head=nn.Linear(8, 2),
            ),
            (TOKENS,),
        )
        for kind in (nn.RNN, nn.LSTM, nn.GRU)
    },
    **{f"a gate by {name}": lambda halves=halves: gated(halves) for name, halves in GATES.items()},
    "into LSTMCell": lambda: on_rows(lambda s, h: s.mix(h)[0], 4, mix=nn.LSTMCell(WIDTH, 4)),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    model, inputs = CASES[name]()
    return nets.settle(model), tuple(x.double() for x in inputs)
