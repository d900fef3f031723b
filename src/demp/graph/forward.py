"""Run a user's forward without leaving a trace on the model: stand-in tensors, modes, hooks and attributes restored."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from demp.errors import TraceError, UsageError
from demp.graph.inputs import copied, on_meta
from demp.graph.leftovers import leaving_nothing
from demp.graph.meta_kernels import MetaKernels
from demp.graph.random_state import SEED, random_kept
from demp.graph.recurrent_rules import step_by_step
from demp.graph.scripted import followed_modules
from demp.parallel import eager

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def as_inputs(example_inputs: Any) -> Inputs:
    """Positional and keyword arguments out of a tuple, a dict or a single tensor."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def call_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a call in the form of example inputs: a tuple, or a dict by name.

    Raises:
        UsageError: positional and keyword arguments that cannot all be named.
    """
    if not (args and kwargs):
        return kwargs or args
    named = inspect.signature(model.forward).bind(*args, **kwargs)
    inputs: dict[str, Any] = {}
    for name, value in named.arguments.items():
        kind = named.signature.parameters[name].kind
        if kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            raise UsageError(
                f"{type(model).__name__} is called with positional and keyword arguments, and {name!r} has no name to "
                "pass it by; call it with one kind only"
            )
        inputs.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return inputs


FORWARD = "_demp_forward"
"""Attribute of a model: how demp runs it where that is not its forward."""


def set_forward(model: nn.Module, forward: str | Callable[..., Any] | None) -> None:
    """Let demp run the model by one of its methods (a name), or by a function of the model and the inputs.

    Raises:
        UsageError: neither of them.
    """
    if forward is None:
        return
    name, kind = forward, type(model).__name__
    if isinstance(name, str) and not callable(getattr(model, name, None)):
        raise UsageError(f"forward={name!r}: {kind} has no such method; give the name of a method or a function")
    if not callable(forward) and not isinstance(forward, str):
        raise UsageError(f"forward is a {type(forward).__name__}; give the name of a method or a function")
    vars(model)[FORWARD] = forward


def raise_if_no_forward(model: nn.Module) -> None:
    """A model without a forward of its own, where nothing says how demp should run it."""
    own = getattr(model, "forward", None)
    if FORWARD in vars(model) or (callable(own) and getattr(own, "__func__", own) is not nn.Module.forward):
        return
    raise TraceError(
        f"{type(model).__name__} has no forward, and demp must run the whole of it to see its neurons: give the pruner "
        "forward=, the name of a method or a function of the model and the example inputs"
    )


@contextmanager
def forward_set(model: nn.Module) -> Iterator[None]:
    """Inside, a call of the model runs what `set_forward` was given, if anything was."""
    given, space = vars(model).get(FORWARD), vars(model)
    if given is None:
        yield
        return
    before = {"forward": space["forward"]} if "forward" in space else {}
    space["forward"] = getattr(model, given) if isinstance(given, str) else partial(given, model)
    try:
        yield
    finally:
        space.pop("forward")
        space.update(before)


def first_names(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every parameter and buffer once, by its first name; and the other names of tied ones."""
    seen: dict[int, str] = {}
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        if id(tensor) in seen:
            aliases[name] = seen[id(tensor)]
        else:
            seen[id(tensor)] = name
            unique[name] = tensor
    return unique, aliases


@contextmanager
def evaluating(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Evaluation mode inside (or training mode), nothing compiled; every module's own mode restored after.

    The fused attention block of evaluation mode stays off, and so do recurrent layers in one operation: they hide the
    operations that read neurons.
    """
    modes = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.train(training)
    try:
        with eager(), forward_set(model), step_by_step(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in modes:
            module.training = mode


@contextmanager
def hooks_off(model: nn.Module) -> Iterator[None]:
    """No hooks inside: those that watch the training must not see a rehearsal of it."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    hooks: list[Any] = [getattr(module, kind) for module in model.modules() for kind in kinds]
    before = [h.copy() for h in hooks]
    for space in hooks:
        space.clear()
    try:
        yield
    finally:
        for space, old in zip(hooks, before, strict=True):
            space.update(old)


@contextmanager
def module_stack(model: nn.Module, stack: list[str], ran: Counter[str]) -> Iterator[None]:
    """Keep ``stack`` at the paths of the modules whose forward runs; ``ran`` counts their calls."""

    def enter(name: str) -> Any:
        def note(module: nn.Module, args: Any) -> None:
            stack.append(name)
            ran[name] += 1

        return note

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        if stack:
            stack.pop()

    handles = []
    for name, module in followed_modules(model):
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    inputs: Inputs,
    vehicle: str,
    *,
    modes: tuple[Any, ...] = (),
    training: bool = False,
    seed: int = SEED,
    then: Callable[[Any], None] | None = None,
) -> tuple[Any, list[Tensor]]:
    """One forward with ``tensors`` in place of the model's own: its output, and tensors that it left on modules.

    A training forward draws by ``seed``. ``then(output)`` runs while the tensors are still replaced. Nothing of the
    model, the inputs and the random state changes.
    """
    args, kwargs = on_meta(inputs) if vehicle == "meta" else copied(inputs)
    places = (torch.device("meta"), MetaKernels()) if vehicle == "meta" else ()
    cuda = sorted({t.get_device() for t in tensors.values() if t.is_cuda})
    with evaluating(model, training), random_kept(cuda, seed=seed if training else None), torch.enable_grad():
        with leaving_nothing(model) as left:
            out = call(model, tensors, args, kwargs, (*places, *modes), then)
        own = {id(t) for t in tensors.values()}  # functional_call forgets some in modules that have two names
        return out, [t for t in left if id(t) not in own]


def relevant(out: Any, outputs: Callable[[Any], Any] | None, vehicle: str, modes: tuple[Any, ...] = ()) -> Any:
    """What counts of a model's output, under the modes of its forward.

    Raises:
        UsageError: ``outputs`` fails on it.
    """
    if outputs is None:
        return out
    places = (torch.device("meta"), MetaKernels()) if vehicle == "meta" else ()
    with ExitStack() as stack:
        for mode in (*places, *modes):
            stack.enter_context(mode)
        try:
            return outputs(out)
        except Exception as error:  # the user's function may raise anything
            raise UsageError(f"outputs= fails on what the model returns, {type(out).__name__}: {error!r}") from error


def call(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    args: Any,
    kwargs: Any,
    modes: tuple[Any, ...],
    then: Callable[[Any], None] | None = None,
) -> Any:
    """Call the model by ``functional_call`` under the given modes."""
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        if then is None:
            return functional_call(model, dict(tensors), args, kwargs)
        named = {f"model.{name}": tensor for name, tensor in tensors.items()}
        return functional_call(WithSequel(model, then), named, args, kwargs)


class WithSequel(nn.Module):
    """A model, and what is done with its output while its tensors are replaced."""

    def __init__(self, model: nn.Module, then: Callable[[Any], None]) -> None:
        super().__init__()
        self.model, self.then = model, then

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's output, after passing it to ``then``."""
        out = self.model(*args, **kwargs)
        self.then(out)
        return out


def stand_ins(tensors: Mapping[str, Tensor], vehicle: str) -> dict[str, Tensor]:
    """Tensors that may be traced without touching the model: meta copies, or detached aliases with buffers cloned."""
    if vehicle == "meta":
        return {name: torch.empty_like(t, device="meta").requires_grad_(t.requires_grad) for name, t in tensors.items()}
    return {
        name: t.detach().requires_grad_(t.requires_grad) if isinstance(t, nn.Parameter) else t.detach().clone()
        for name, t in tensors.items()
    }
