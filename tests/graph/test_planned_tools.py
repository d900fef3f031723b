"""Calls that a cut has planned, in the tools of others: the model's numbers, or a refusal with the remedy."""

import copy
import io
import pickle
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import comparing
import demp
import killing
import nets
from demp.graph.calls import model_calls
from planned import Planned
from thinning import mostly_slow

DRAW = torch.Generator().manual_seed(0)
IMAGE, OTHER = (torch.randn(n, 3, 6, 6, dtype=torch.float64, generator=DRAW) for n in (2, 5))
CUTS = ([1, 2, 6], [4])
"""Neurons of the hidden layer, counted each time among those that are there."""
KINDS = {"conv", "mean", "slice", "split", "view"}

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def cut(model: nn.Module, neurons: list[int]) -> None:
    graph = demp.trace(model, (IMAGE,))
    dead = {"relu": neurons}
    killing.kill(model, graph, dead)
    assert demp.cut(model, dead, example_inputs=(IMAGE,), graph=graph).removed == len(neurons)


def dense(shuffle: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nets.settle(Planned(shuffle))


def after(cuts: int, shuffle: bool = False) -> nn.Module:
    model = dense(shuffle)
    for neurons in CUTS[:cuts]:
        cut(model, neurons)
    planned = {plan.kind for plans in model_calls(model).values() for plan in plans.values()}
    assert planned == KINDS | ({"shuffle"} if shuffle else set())
    return model


@pytest.fixture(scope="module", params=[1, 2], ids=["one cut", "two cuts"])
def model(request) -> nn.Module:
    return after(request.param)


@pytest.fixture
def compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def require_same(model: nn.Module, other: Any, tolerance: float = 1e-12) -> None:
    """Equal outputs, also on a batch of another size."""
    dtype = next(model.parameters()).dtype
    for x in (IMAGE.to(dtype), OTHER.to(dtype)):
        assert comparing.gap([model(x).detach()], [other(x).detach()]) < tolerance


# torch.compile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", mostly_slow((False, True), quick=(True,)))
def test_a_compiled_model_is_one_graph_after_every_cut(compiler, shuffle):
    model, counted = dense(shuffle), []

    def backend(graph: Any, inputs: Any) -> Any:
        counted.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for number, neurons in enumerate(CUTS):
        cut(model, neurons)
        assert comparing.gap([model(IMAGE).detach()], [compiled(IMAGE).detach()]) < 1e-12
        assert len(counted) == number + 1


def test_a_compiled_model_has_the_same_gradients(compiler):
    model = after(2).train()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    for each in (model, compiled):
        each(IMAGE).square().sum().backward()
    grads = [[p.grad for p in each.parameters() if p.grad is not None] for each in (model, compiled)]
    assert len(grads[0]) == len(list(model.parameters()))
    assert comparing.gap(*grads) < 1e-10


# Graphs and files of torch ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")  # our counter
@pytest.mark.parametrize("strict", [False, True])
def test_torch_export(model, compiler, strict):
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (IMAGE,), dynamic_shapes=(batch,), strict=strict)
    require_same(model, program.module())


def test_torch_jit_trace(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)  # nothing of the batch is written into the graph
        traced = torch.jit.trace(model, (IMAGE,))
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.freeze(traced), buffer)
    buffer.seek(0)
    require_same(model, torch.jit.load(buffer))


def test_torch_jit_script_is_refused(model):
    for module in (model, model.parts, model.numbers):
        with pytest.raises(demp.UsageError, match=r"would be wrong\. Use torch\.jit\.trace or torch\.export"):
            torch.jit.script(module)


def test_torch_fx(model):
    traced = torch.fx.symbolic_trace(model)
    require_same(model, traced)
    require_same(model, torch.fx.symbolic_trace(traced))
    require_same(model, copy.deepcopy(traced))


def test_torch_fx_refuses_a_call_along_the_channels():
    with pytest.raises(demp.UsageError, match=r"use torch\.export or torch\.jit\.trace"):
        torch.fx.symbolic_trace(after(1, shuffle=True))


def test_plain_is_refused_with_the_remedy(model):
    with pytest.raises(demp.ExportError, match=r"in numbers, numbers\.mix, parts, only a cut .* Use torch\.export"):
        demp.plain(model)


# ONNX ---------------------------------------------------------------------------------------------------


def require_onnx(model: nn.Module, file: bytes) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    (entry,) = session.get_inputs()
    require_same(model, lambda x: torch.from_numpy(session.run(None, {entry.name: x.numpy()})[0]), 1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_torchscript_exporter_to_onnx():
    model, buffer = after(2).float(), io.BytesIO()
    names = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
    torch.onnx.export(model, (IMAGE.float(),), buffer, dynamo=False, **names)
    require_onnx(model, buffer.getvalue())


def test_the_files_that_demp_export_writes(tmp_path):
    """Among them ONNX by dynamo. Each is read back and compared before it is kept."""
    model = after(2, shuffle=True).float()
    for form in ("onnx", "torch-export", "safetensors"):
        demp.export(model, tmp_path / form, to=form, example_inputs=(torch.cat([IMAGE.float()] * 8),))
    require_onnx(model, (tmp_path / "onnx" / "model.onnx").read_bytes())


def test_a_state_dict_says_what_it_leaves_out(tmp_path):
    inputs = (torch.cat([IMAGE.float()] * 8),)
    report = demp.export(after(1).float(), tmp_path / "out", to="state-dict", example_inputs=inputs)
    assert any("calls that a cut has planned" in note for note in report.notes)


# Copies and files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
def test_copies_pickles_and_files(shuffle, tmp_path):
    model = after(2, shuffle)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    demp.save(model, tmp_path / "saved", example_inputs=(IMAGE,))
    other = dense(shuffle)
    demp.load_state_dict(other, copy.deepcopy(model.state_dict()))
    for twin in (
        copy.deepcopy(copy.deepcopy(model)),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
        demp.load(partial(dense, shuffle), tmp_path / "saved").eval(),
        other,
    ):
        assert model_calls(twin) == model_calls(model)
        assert comparing.gap([model(OTHER).detach()], [twin(OTHER).detach()]) == 0.0
        assert bool(demp.trace(twin, (IMAGE,)).layer("relu").removable.all())  # it goes on from there


def test_a_state_dict_without_what_stands_beside_it_is_refused():
    state = dict(after(1).state_dict())
    with pytest.raises(demp.UsageError, match=r"a conv in numbers\.mix depends on the widths, .* use demp\.save"):
        demp.load_state_dict(dense(), state, example_inputs=(IMAGE,))
