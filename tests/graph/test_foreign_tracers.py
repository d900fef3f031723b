"""What other tools make of a residual sum of two widths: the same numbers, or an error that names the remedy."""

import copy
import io
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.fx.experimental.optimization import fuse

import comparing
import demp
import killing
import nets
from demp.graph import sums
from demp.graph.joins import ATTRIBUTE, JoinPlan, model_joins, set_joins
from residuals import Block, cut_apart, network
from thinning import mostly_slow

SPELLINGS = mostly_slow(
    ("x + y", "y + x", "y += x", "y.add_(x)", "torch.add"), quick=("x + y", "y += x", "y.add_(x)", "torch.add")
)


@pytest.fixture(params=SPELLINGS)
def cut_network(request) -> nn.Module:
    model, inputs = network(spelling=request.param)
    cut_apart(model, inputs)
    assert model_joins(model)
    return model.eval()


def batches() -> list[Tensor]:
    return [torch.randn(size, 3, 6, 6, dtype=torch.float64) for size in (1, 2, 5)]


def difference(model: nn.Module, other: nn.Module) -> float:
    """Largest absolute difference of outputs, on several batch sizes."""
    with torch.no_grad():
        return max(comparing.gap([model(x.clone())], [other(x.clone())]) for x in batches())


def equal_widths() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Both sides of the one sum have lost a channel, but not the same one."""
    model, inputs = network(blocks=1)
    graph = demp.trace(model, inputs)
    dead = {"1": [3], "2.act#2": [5]}
    killing.kill(model, graph, dead)
    assert demp.cut(model, dead, example_inputs=inputs, graph=graph).removed == 2
    assert model[0].out_channels == model[2].conv2.out_channels == 7
    return model.eval(), inputs


# torch.fx -----------------------------------------------------------------------------------------------


def test_a_symbolic_trace_gives_what_the_model_gives(cut_network):
    assert difference(cut_network, symbolic_trace(cut_network)) < 1e-12
    assert difference(cut_network, fuse(copy.deepcopy(cut_network))) < 1e-10


def test_equal_widths_are_no_plain_sum():
    model, _ = equal_widths()
    plain = copy.deepcopy(model)
    set_joins(plain[2], {})
    assert difference(model, plain) > 1e-3  # what a tool that sees a plain sum would compute
    assert difference(model, symbolic_trace(model)) < 1e-12
    assert difference(model, fuse(copy.deepcopy(model))) < 1e-10


def test_a_join_by_index_is_traced_too(monkeypatch):
    monkeypatch.setattr(sums, "MAX_RUNS", -1)
    model, inputs = network()
    cut_apart(model, inputs)
    assert {plan.kind for some in model_joins(model).values() for plan in some.values()} == {"index"}
    traced = symbolic_trace(model.eval())
    assert difference(model, traced) < 1e-12
    assert set(traced.state_dict()) == set(model.state_dict())


def test_the_module_that_sums_is_traced_by_itself(cut_network):
    block = cut_network[2]
    width = cut_network[0].out_channels
    traced = symbolic_trace(block)
    assert [node.name for node in traced.graph.nodes if node.op == "placeholder"] == ["x"]
    x = torch.randn(3, width, 4, 4, dtype=torch.float64).relu()
    assert comparing.gap([block(x).detach()], [traced(x).detach()]) < 1e-12


def test_a_retraced_graph_is_right(cut_network):
    assert difference(cut_network, symbolic_trace(symbolic_trace(cut_network))) < 1e-12


def test_the_tracer_is_left_as_it_was(cut_network):
    tracer = torch.fx.Tracer()
    tracer.trace(cut_network)
    assert "create_proxy" not in vars(tracer)


class ShapeBlock(Block):
    """Adds two sizes, which a symbolic forward cannot tell from two tensors."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.size(2) + x.size(3)
        return self.act(self.branch(x) * (pixels / 12) + x)


class TwoSums(Block):
    """Adds two parameters before the residual sum."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__(width, inner)
        self.a, self.b = (nn.Parameter(torch.rand(1, 1, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x) * (self.a + self.b) + x)


def with_block(block: nn.Module) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), block, nn.Flatten(), nn.Linear(8 * 36, 4))
    model, inputs = nets.settle(model), (batches()[1],)
    for seed in range(5):
        cut_apart(model, inputs, seed)
        if model_joins(model):
            return model.eval()
    raise AssertionError("no seed gives two widths")


def test_other_sums_of_the_module_are_counted():
    model = with_block(TwoSums(8, 5))
    assert set(model_joins(model)["2"]) == {1}
    assert difference(model, symbolic_trace(model)) < 1e-12


def test_a_sum_that_cannot_be_told_is_an_error():
    model = with_block(ShapeBlock(8, 5))
    with pytest.raises(demp.UsageError, match=r"has 2 sums, the forward itself 1\. Trace demp\.plain\(model\)"):
        symbolic_trace(model)
    assert difference(model, symbolic_trace(demp.plain(model))) < 1e-12


def test_files_of_earlier_versions_do_not_say_how_many_sums(cut_network):
    for path, plans in model_joins(cut_network).items():
        old = {n: JoinPlan(p.stream, p.axis, p.widths, p.runs) for n, p in plans.items()}
        vars(cut_network.get_submodule(path))[ATTRIBUTE] = old
    with pytest.raises(demp.UsageError, match="the forward itself an unknown number"):
        symbolic_trace(cut_network)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_quantize_fx():
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    model, inputs = equal_widths()
    model.float()
    x = inputs[0].float()
    ready = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("x86"), (x,))
    assert comparing.gap([ready(x).detach()], [model(x).detach()]) < 1e-5
    found = convert_fx(ready)(x)
    assert float((found - model(x)).abs().max() / model(x).abs().max()) < 0.1


# TorchScript --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torch_jit_trace_runs_the_forward(cut_network):
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)  # nothing of the batch is written into the graph
        traced = torch.jit.trace(cut_network, batches()[1])
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.freeze(traced), buffer)
    buffer.seek(0)
    assert difference(cut_network, torch.jit.load(buffer)) < 1e-12


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torch_jit_script_is_refused_and_reads_the_plain_network(cut_network):
    blocks = list(cut_network)
    with pytest.raises(demp.UsageError, match=r"Script demp\.plain\(model\)"):
        torch.jit.script(cut_network)
    assert list(cut_network) == blocks and model_joins(cut_network)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_torchscript_exporter_to_onnx(spelling):
    import onnxruntime

    model, inputs = network(spelling=spelling)
    cut_apart(model, inputs)
    model.eval().float()
    buffer = io.BytesIO()
    x = inputs[0].float()
    torch.onnx.export(model, (x,), buffer, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    session = onnxruntime.InferenceSession(buffer.getvalue())
    for batch in (x, torch.randn(5, 3, 6, 6)):
        found = torch.from_numpy(session.run(None, {"x": batch.numpy()})[0])
        assert comparing.gap([model(batch).detach()], [found]) < 1e-5


# The module itself --------------------------------------------------------------------------------------


def test_a_joined_module_keeps_its_signature(cut_network):
    import inspect

    assert list(inspect.signature(cut_network[2].forward).parameters) == ["x"]


def test_a_planned_sum_that_does_not_run_is_an_error():
    class Skipping(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x if self.training else super().forward(x)

    block = Skipping(4, 3).eval()
    set_joins(block, {0: JoinPlan(0, 1, (4, 4), ((1, 0, 3),))})
    block(torch.randn(1, 4, 4, 4))
    with pytest.raises(RuntimeError, match=r"did not run in the forward of Skipping.*in demp.plain\(model\)"):
        block.train()(torch.randn(1, 4, 4, 4))
