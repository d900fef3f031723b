"""The detector of a run: from which examples death is decided, and when to start watching."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from demp.activity.criteria import Criterion
from demp.activity.observe import quiet
from demp.activity.probe import Detection, detection_of, probe, tried
from demp.activity.readers import in_backward
from demp.activity.window import Window
from demp.errors import UsageError
from demp.graph import GraphState, NeuronGraph
from demp.graph.forward import as_inputs, call_inputs
from demp.graph.inputs import copied
from demp.parallel import Hook

Batches = Callable[[int], Iterable[Any]] | Sequence[Any]
Collect = Literal["auto", "probe", "window", "batches"]
"""Where dead neurons are looked for: ``DemPConfig.collect``; ``batches``: on batches if there are, else nowhere."""
DEFAULT_WINDOW = 12
UNSEEN = (
    "no training forward was seen before this check that calls the modules which read neurons, so no neuron was found "
    "dead; pass batches=..."
)
PROOF_EXAMPLES = 128
"""A cut is proven on at most this many of the examples that showed the death."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """From which examples death is decided: batches that the user gives, or what training shows anyway."""

    example_inputs: Any
    """Inputs of one forward: a cut is proven on them where no batch was seen."""
    batches: Batches | None = None
    collect: Collect = "auto"
    window_steps: int | None = None
    """Steps before a check whose training forwards are watched; None: `DEFAULT_WINDOW`."""
    seed: int = 0
    """With the step it decides which examples a callable draws."""


class Detector:
    """Finds dead neurons: by a probe on ``batches``, or by a window over the training forwards before a check.

    What the window finds dead must also be dead in evaluation mode on the last training batch, because that is what a
    cut is proven on.

    Raises:
        UsageError: a probe without batches, or batches that cannot be read at every check.
    """

    def __init__(self, model: nn.Module, graph: NeuronGraph, criterion: Criterion, sources: Sources) -> None:
        self._model, self._graph, self._criterion, self._sources = model, graph, criterion, sources
        self.seed = sources.seed
        """A run that is loaded brings its own."""
        self._length = sources.window_steps or DEFAULT_WINDOW
        probes = by_probe(sources.batches, sources.collect)
        self._window = None if probes else Window(model, graph, criterion)
        raise_if_batches_fail(model, sources.batches)
        self._last_inputs: Any = None
        self._in_evaluation: Any = None
        """Inputs of the last forward in evaluation mode with gradients, until the next step says what it was for."""
        self._trained = False
        """Did a forward in training mode run since the last step?"""
        self._proof: Any = None
        self._few_run: bool | None = None
        """Does the model run on the first examples of a batch? Not where a tensor counts others (edges of a graph)."""
        self._hook: Any = None
        self.on_training: Callable[[], Any] = lambda: None
        """Called at every training forward of the whole model, where a window watches."""
        self._near = False
        """Is a check due after the next step?"""
        if self._window is not None:
            self._watch()

    def _watch(self) -> None:
        hook = Hook(self._remember)
        self._hook = self._model.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)

    def watch_held_out(self) -> None:
        """Remember the last training batch before a check on batches, where neurons leave with constants."""
        constants = any(self._criterion.of_moments(layer.activation) for layer in self._graph.layers)
        if self._window is None and constants:
            self._watch()

    def detect(self, state: GraphState, step: int) -> Detection:
        """Detect which neurons are dead now, by a probe or the window."""
        if self._window is None:
            self._proof = None
            batches = self._probe_batches(step)
            return probe(self._model, state, batches, self._criterion, until_settled=True)
        seen = self._window.detect()
        if not seen.tallies:
            return seen
        self._proof = self._last_inputs
        inputs = self._sources.example_inputs if self._last_inputs is None else self._last_inputs
        still = probe(self._model, state, [inputs], self._criterion)
        return detection_of((*seen.tallies, *still.tallies), seen.batches, seen.examples)

    def notes(self, detection: Detection) -> tuple[str, ...]:
        """What a report must say of a detection: what it does not know, and why."""
        if detection.batches == 0:
            return (UNSEEN,)
        hidden = [name for name in detection.unseen if self._window is not None and name in self._window.unwatched]
        unseen = [name for name in detection.unseen if name not in hidden]
        found = []
        if unseen:
            found.append(
                f"no forward before this check reached all that reads {listed(unseen)}: none there counts as dead"
            )
        if hidden:
            found.append(
                f"{listed(hidden)} cannot be watched while training (read by a norm, a sum or a bare parameter alone), "
                "so none there counts as dead; pass batches=..."
            )
        if self._window is not None and self._last_inputs is None:
            found.append(
                f"training calls parts of {type(self._model).__name__} and never the whole, so this check was proven "
                "on example_inputs"
            )
        return tuple(found)

    def detect_on_copy(self, copied: nn.Module, fit: Callable[[Any], Any], state: GraphState, step: int) -> Detection:
        """Detect in a copy of the model, on the examples of the last detection; ``fit`` makes them fit the copy.

        Of a window those are the last training batch.
        """
        batches = [self._last_inputs] if self._window is not None else self._probe_batches(step)
        return probe(copied, state, map(fit, batches), self._criterion, until_settled=True)

    @property
    def has_examples(self) -> bool:
        """Are there batches, or a window that watches?"""
        return self._window is not None or self._sources.batches is not None

    def draw(self, step: int) -> None:
        """Take examples of the batches of this step for the proof of a cut that no detection was asked for."""
        self._proof = None
        next(iter(self._probe_batches(step)), None)

    def proof(self) -> Any:
        """Examples for the proof of a cut: some of those behind the last detection."""
        if self._proof is None:
            return self._sources.example_inputs
        few = first_examples(self._proof, PROOF_EXAMPLES)
        if few is not self._proof and self._few_run is None:
            self._few_run = runs(self._model, few)
        return few if self._few_run else self._proof

    def held_out(self) -> Any:
        """Examples of the last training batch where the detection looks at other batches; None if there are none."""
        if self._window is not None or self._last_inputs is None:
            return None
        return first_examples(self._last_inputs, PROOF_EXAMPLES)

    def step(self) -> None:
        """An optimizer moved: what ran in evaluation mode was training if nothing ran in training mode."""
        if self._window is not None:
            self._window.step()
        if self._in_evaluation is not None and not self._trained:
            self._last_inputs = self._in_evaluation
        self._in_evaluation, self._trained = None, False

    def look_ahead(
        self, state: GraphState, step: int, last_step: int, due: Callable[[int], bool], *, fresh: bool
    ) -> None:
        """Open the window when a check is near, so that most steps pay nothing; ``fresh``: one was just made."""
        if self._window is None:
            self._near = due(step + 1) or step + 1 == last_step
            self._last_inputs = self._last_inputs if self._near else None
            return
        ahead = range(step + 1, min(step + self._length, last_step) + 1)
        near = any(due(s) or s == last_step for s in ahead) or (step >= last_step and not fresh)
        if near and (not self._window.is_open or fresh):
            self._window.open(state)
        elif not near:
            self._window.close()

    def close(self) -> None:
        """Remove all hooks that watch training forwards."""
        if self._hook is not None:
            self._hook.remove()
        if self._window is not None:
            self._window.close()

    def state_dict(self, *, with_inputs: bool) -> dict[str, Any]:
        """What an open window has seen; the last training batch where no other will follow."""
        window = None if self._window is None else self._window.state_dict()
        return {"window": window, "last_inputs": self._last_inputs if with_inputs else None}

    def load_state_dict(self, saved: dict[str, Any], state: GraphState) -> None:
        """Go on with what a saved detector had seen."""
        self._last_inputs = saved["last_inputs"]
        if self._window is None:
            return
        self._window.close()  # what it has seen so far is of other widths
        if saved["window"] is not None:
            self._window.open(state)
            self._window.load_state_dict(saved["window"])

    def _remember(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not torch.is_grad_enabled() or in_backward():
            return
        if self._window is None and not self._near:
            return
        if self._window is not None:
            self.on_training()
        if not module.training and any(p.is_meta for p in module.parameters()):
            return  # on the meta device the model is only read
        inputs = call_inputs(module, args, kwargs)
        if self._window is None or self._window.is_open:  # a check is near, and the forward may write into them
            with torch.no_grad():
                inputs = copied(inputs)
        if module.training:
            self._last_inputs, self._trained = inputs, True
        else:
            self._in_evaluation = inputs

    def _probe_batches(self, step: int) -> Iterable[Any]:
        """The batches of this check, made once: the first of those that show the death also proves the cut."""
        batches = self._sources.batches
        for batch in () if batches is None else made(batches, self.seed + step):
            self._proof = batch if self._proof is None else self._proof
            yield batch


def made(batches: Batches, seed: int) -> Iterable[Any]:
    """The batches that a callable makes, with the seed if it takes one; or those that were given."""
    if not callable(batches):
        return batches
    takes_seed = len(inspect.signature(batches).parameters) > 0
    return batches(seed) if takes_seed else batches()  # type: ignore[call-arg]


def by_probe(batches: Batches | None, collect: Collect) -> bool:
    """Probe or window?

    Raises:
        UsageError: a probe without batches.
    """
    if isinstance(batches, Sequence) and not batches:
        raise UsageError("batches is empty; give at least one batch of training examples, or none to watch training")
    if collect == "probe" and batches is None:
        raise UsageError("collect='probe' needs batches: pass batches=[...] or a callable that returns them")
    return collect in ("probe", "batches") or (collect == "auto" and batches is not None)


def raise_if_batches_fail(model: nn.Module, batches: Batches | None) -> None:
    """What can be known of batches before the first check.

    Raises:
        UsageError: they can be read once alone, or the model does not run on the first of them.
    """
    if isinstance(batches, Iterator):
        raise UsageError(
            f"batches is a {type(batches).__name__}, which can be read once, and every check reads them; give a list, "
            "a DataLoader, or a function that makes the iterator"
        )
    if isinstance(batches, Sequence):
        args, kwargs = copied(as_inputs(batches[0]))
        with quiet(model):
            tried(model, args, kwargs)


def runs(model: nn.Module, inputs: Any) -> bool:
    """Does the model run on these inputs?"""
    args, kwargs = copied(as_inputs(inputs))
    try:
        with quiet(model):
            model(*args, **kwargs)
    except Exception:  # the user's forward may raise anything
        return False
    return True


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def first_examples(inputs: Any, count: int) -> Any:
    """The first examples of a batch; tensors that do not share the batch's first axis stay whole."""
    args, kwargs = as_inputs(inputs)
    sizes = [len(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()]
    if not sizes or sizes[0] <= count:
        return inputs
    cut = tree_map_only(Tensor, lambda t: t[:count] if t.dim() and len(t) == sizes[0] else t, (args, kwargs))
    return cut[1] if cut[1] and not cut[0] else cut[0]
