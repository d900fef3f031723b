"""The names and signatures that other code relies on."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import demp
from runs import IMAGE, PlainNet, ResidualNet, build, examples, kill, loss_of, train

SOURCE = Path(demp.__file__).parent


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_demp_does_not_import_torch():
    code = "import sys, demp; dir(demp); demp.__version__; print('torch' in sys.modules)"
    assert python(code) == "False"


def test_no_submodule_takes_the_place_of_a_public_name():
    code = """
import demp, importlib, pkgutil
for module in pkgutil.iter_modules(demp.__path__):
    if module.name not in ("cli", "train", "recipes"):
        importlib.import_module(f"demp.{module.name}")
names = set(demp.__all__) - {"methods", "recipes", "schedules", "theory"}
print([name for name in names if not callable(getattr(demp, name))])
"""
    assert python(code) == "[]"


def test_the_catalogue():
    promised = {
        "ArtifactError", "Cost", "Criterion", "CutError", "CutReport", "DemP", "DemPConfig", "DempError", "ExportError",
        "ExportReport", "Limits", "NeuronGraph", "NeuronMonitor", "Pruner", "TraceError", "UsageError", "alive", "cost",
        "cut", "export", "inspect", "load", "methods", "plain", "recipes", "save", "schedules", "theory",
        "trace", "LoadReport", "load_state_dict",
    }  # fmt: skip
    assert promised <= set(demp.__all__)
    assert set(demp.__all__) == {name for name in dir(demp) if not name.startswith("_")}
    assert all(getattr(demp, name) is not None for name in demp.__all__)
    with pytest.raises(AttributeError, match="module 'demp' has no attribute 'prune'"):
        demp.prune  # noqa: B018


def parameters(function: object) -> list[str]:
    """Names in order; keyword-only ones after a star."""
    found, star = [], False
    for name, parameter in inspect.signature(function).parameters.items():  # type: ignore[arg-type]
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not star:
            found.append("*")
            star = True
        found.append(f"**{name}" if parameter.kind is inspect.Parameter.VAR_KEYWORD else name)
    return found


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("DemP", ["model", "optimizer", "*", "example_inputs", "total_steps", "config", "floor"]),
        ("methods.create", ["name", "model", "optimizer", "*", "example_inputs", "total_steps", "config", "**options"]),
        ("methods.names", []),
        ("trace", ["model", "example_inputs"]),
        ("alive", ["model", "batches", "*"]),
        ("cut", ["model", "dead", "*", "example_inputs", "optimizer", "copies"]),
        ("cost", ["model", "example_inputs"]),
        ("inspect", ["model", "example_inputs"]),
        ("save", ["model", "path"]),
        ("load", ["build", "path"]),
        ("NeuronMonitor", ["model"]),
        ("export", ["model_or_run", "path", "*", "to", "example_inputs", "build", "measure"]),
    ],
)
def test_signatures(name: str, start: list[str]):
    found = demp
    for part in name.split("."):
        found = getattr(found, part)
    assert parameters(found)[: len(start)] == start


def test_the_pruner_takes_its_own_arguments_next_to_the_methods():
    names = parameters(demp.Pruner)
    assert {"batches", "attach", "copies", "seed", "example_inputs", "total_steps"} <= set(names)
    steps = ("before_step", "after_step", "skip_step", "finish", "detach", "penalty_loss")
    for method in (*steps, "metrics", "detect", "verdict", "state_dict", "load_state_dict"):
        assert callable(getattr(demp.Pruner, method))


def test_errors_are_of_one_family_and_of_the_kinds_that_python_users_catch():
    for error in (demp.UsageError, demp.TraceError, demp.CutError, demp.ArtifactError, demp.ExportError):
        assert issubclass(error, demp.DempError)
    assert issubclass(demp.UsageError, ValueError)
    assert issubclass(demp.CutError, RuntimeError)


def test_the_ten_lines_of_the_design(tmp_path: Path):
    def make() -> PlainNet:
        return build(PlainNet)

    model = make()
    kill(model.norm1, [0, 5])
    x, total_steps = examples(IMAGE), 12
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    config = demp.DemPConfig(peak_strength=1e-3)
    pruner = demp.DemP(model, optimizer, example_inputs=(x,), total_steps=total_steps, config=config)
    train(model, optimizer, IMAGE, range(total_steps))
    report = pruner.finish()
    assert isinstance(report, demp.CutReport)
    assert pruner.history[-1] is report
    assert sum(r.removed for r in pruner.history) >= 2

    graph = demp.trace(model, (x,))
    assert (graph.layers[0].name, graph.layers[0].width) == ("act1", model.conv1.out_channels)
    assert graph.layers[0].producers == (("conv1.weight", 0),)
    assert graph.layers[0].reads == (("conv2.weight", 0),)
    assert graph.layers[0].coupled == ()
    assert graph.refused == ()

    alive = demp.alive(model, [x])
    assert alive["act1"].dtype == torch.bool
    kill(model.norm2, [0])
    optimizer.zero_grad()
    cut = demp.cut(model, {"act2": [0]}, example_inputs=(x,), optimizer=optimizer, copies=[])
    assert cut.removed == 1

    cost = demp.cost(model, (x,))
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.neurons == sum(layer.width for layer in graph.layers) - 1
    assert 0 < cost.flops < cost.paper_flops
    assert cost.bytes > 0

    demp.save(model, tmp_path / "model", example_inputs=(x,))
    loaded = demp.load(make, tmp_path / "model")
    assert torch.equal(loaded.eval()(x), model.eval()(x))

    assert "demp" in demp.methods.names()
    monitor = demp.NeuronMonitor(loaded.train())
    loaded(x)
    assert set(monitor.snapshot().layers) == {"act1", "act2", "act3"}
    monitor.close()


def test_a_loop_that_owns_the_whole_step():
    model = build(PlainNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = demp.DemP(model, [optimizer], example_inputs=(examples(IMAGE),), total_steps=3, attach=False)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, step, IMAGE).backward()
        pruner.before_step()
        optimizer.step()
        pruner.after_step()
    assert pruner.step == 3


def test_refusals_have_a_name_a_reason_and_a_count():
    graph = demp.trace(build(ResidualNet, act=torch.nn.Softplus), (examples(IMAGE),), joins=False)
    assert all(isinstance(r.name, str) and r.reason and r.neurons > 0 for r in graph.refused)
    assert graph.layer("stem_act").coupled == ("act2",)
    with pytest.raises(demp.UsageError, match="no layer called 'stem_akt' in the graph; did you mean 'stem_act'"):
        graph.layer("stem_akt")


def test_the_citation_names_this_version():
    citation = (Path(__file__).parent.parent / "CITATION.cff").read_text()
    assert f"\nversion: {demp.__version__}\n" in citation
