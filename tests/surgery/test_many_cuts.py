"""Cut after cut on random networks in training: outputs right, nothing stale, nothing left over."""

import copy
import gc
import random
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn, optim
from torch.utils._pytree import tree_leaves

import comparing
import demp
import killing
import nets

FAMILIES: list[Callable[[random.Random], tuple[nn.Module, tuple[Tensor, ...]]]] = [
    lambda r: nets.plain(r.choice([1, 2]), (r.randint(6, 12), r.randint(6, 12)), end=r.choice(["flatten", "mean"])),
    lambda r: nets.residual([r.randint(4, 8)] * 3, inner=r.randint(4, 8), pre=r.random() < 0.5),
    lambda r: nets.dense(r.randint(4, 8), r.randint(3, 6), 2),
    lambda r: nets.branches([r.randint(3, 6) for _ in range(3)]),
    lambda r: nets.separable(r.randint(4, 8), r.randint(6, 12), r.randint(3, 6)),
    lambda r: nets.gated(r.randint(8, 16), r.choice(["separate", "packed", "glu"])),
    lambda r: nets.tokens(r.randint(4, 8), r.randint(6, 12), layout=r.choice(["nhwc", "tokens"])),
]
OPTIMIZERS: list[Callable[..., optim.Optimizer]] = [
    lambda p: optim.SGD(p, lr=1e-3, momentum=0.9),
    lambda p: optim.Adam(p, lr=1e-3, amsgrad=True),
    lambda p: optim.Adafactor(p, lr=1e-3),
    lambda p: optim.RMSprop(p, lr=1e-3, centered=True),
    lambda p: optim.LBFGS(p, lr=1e-3, max_iter=2, history_size=3),
]
CUTS_PER_NETWORK = 10


def step(model: nn.Module, optimizer: optim.Optimizer, inputs: tuple[Tensor, ...]) -> None:
    def loss() -> Tensor:
        optimizer.zero_grad()
        out = model.train()(*inputs).square().mean()
        out.backward()
        return out

    optimizer.step(loss)
    optimizer.zero_grad()


def alive(floating: bool = False) -> list[Tensor]:
    """Tensors that Python holds. A model's record of its cuts consists of index tensors, ever more of them."""
    while gc.collect():  # what is freed may have held tensors of C++
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asking an object for its class wakes deprecated ones up
        tensors = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
    return [t for t in tensors if t.is_floating_point() or not floating]


def memory() -> tuple[int, int]:
    """How many tensors Python holds, and the bytes behind them."""
    tensors = alive()
    return len(tensors), sum({t.data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def held(model: nn.Module, optimizer: optim.Optimizer) -> int:
    """Floating tensors of the optimizer's state; every one is a present parameter's, and shaped like it, or flat."""
    parameters = {id(p) for p in model.parameters()}
    flat = (sum(p.numel() for p in model.parameters()),)
    count = 0
    for parameter, state in optimizer.state.items():
        assert id(parameter) in parameters
        for leaf in tree_leaves(dict(state)):
            if isinstance(leaf, Tensor):
                count += leaf.is_floating_point()
                like = leaf.dim() == parameter.dim() and all(map(lambda n, m: n in (1, m), leaf.shape, parameter.shape))
                assert leaf.numel() <= 1 or like or tuple(leaf.shape) == flat
    return count


def one_network(rng: random.Random, cuts: int) -> int:
    """Up to ``cuts`` cuts of random neurons of one random network, a training step after each; how many it was."""
    torch.manual_seed(rng.randint(0, 10**6))
    model, inputs = rng.choice(FAMILIES)(rng)
    model, inputs = nets.settle(model), tuple(x.double() for x in inputs)
    optimizer, average = rng.choice(OPTIMIZERS)(list(model.parameters())), copy.deepcopy(model)
    step(model, optimizer, inputs)
    done, before = 0, None
    for _ in range(cuts):
        graph = demp.trace(model, inputs)
        dead = killing.some_dead(graph, 0.15, rng)
        killing.kill(model, graph, dead)
        wanted = comparing.outputs(model, inputs)
        report = demp.cut(model, dead, example_inputs=inputs, optimizer=optimizer, copies=[average], graph=graph)
        assert comparing.gap(wanted, comparing.outputs(model, inputs)) < 1e-10
        assert [p.shape for p in average.parameters()] == [p.shape for p in model.parameters()]
        done += report.happened
        del graph, dead, wanted, report
        step(model, optimizer, inputs)
        count = len(alive(floating=True)) - held(model, optimizer)
        assert before in (None, count), "a cut left tensors behind"
        before = count
    return done


def many(cuts: int, seed: int) -> None:
    rng = random.Random(seed)
    one_network(rng, 2)  # what torch keeps for itself is there from now on,
    gc.freeze()  # and is not searched again and again
    before = memory()
    done = 0
    while done < cuts:
        done += one_network(rng, min(CUTS_PER_NETWORK, cuts - done))
        assert memory() == before


def test_twenty_five_cuts():
    many(25, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_cuts():
    many(1000, seed=1)
