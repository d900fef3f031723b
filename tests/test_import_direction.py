"""Who may import whom, read from the source: lower rooms know nothing of higher ones."""

import ast
import sys
from pathlib import Path

import pytest

import demp

ROOT = Path(demp.__file__).parent
ORDER = (
    (
        "errors",
        "files",
        "records",
        "compiled",
        "hooks",
        "schedules",
        "penalties",
        "noise",
        "densities",
        "ranks",
        "wrappers",
        "shards",
        "initialization",
    ),
    ("graph",),
    ("activity", "gate_slots", "gates", "masks", "regularization"),
    ("surgery",),
    ("architecture", "proof", "budgets", "widths"),
    ("costs", "artifact", "inspection", "ranking", "methods"),
    ("targets", "outside", "sparing", "admission", "attachment", "view", "shrinking", "latency"),
    (
        "postponement",
        "length",
        "strictness",
        "summary",
        "pruner_copy",
        "other_optimizers",
        "skipping",
        "pruner",
        "options",
        "creation",
        "loading",
    ),
    ("train", "recipes", "integrations", "theory"),
    ("sweep",),
    ("exports", "compare", "report"),
    ("studies",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
DOORS = (
    "train",
    "recipes",
    "integrations",
    "theory",
    "exports",
    "sweep",
    "compare",
    "report",
    "studies",
    "cli",
    "__main__",
)
"""Everything else is the core."""
ALLOWED = {("methods/__init__.py", "creation")}
"""``methods.create`` makes a pruner: the one look upwards, inside a function."""
FOR_THE_REPORT = ("report", "records", "errors", "files", "__version__")
CORE_PACKAGES = {"torch", "safetensors", "demp", *sys.stdlib_module_names}


def room(module: str) -> str:
    """demp.graph.tracer -> graph."""
    return module.split(".")[1] if "." in module else ""


def imports(file: Path) -> list[tuple[str, bool]]:
    """(module, inside a function) for every import, type-checking ones included."""
    tree = ast.parse(file.read_text())
    inner = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inner) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "demp" else [module]
            found += [(name, id(node) in inner) for name in names]
    return found


FILES = sorted(file.relative_to(ROOT).as_posix() for file in ROOT.rglob("*.py"))


def home(name: str) -> str:
    """graph/tracer.py -> graph; pruner.py -> pruner."""
    return name.split("/")[0].removesuffix(".py")


@pytest.mark.parametrize("name", [name for name in FILES if name != "__init__.py"])
def test_only_downwards(name):
    mine = LEVEL[home(name)]
    for module, inside in imports(ROOT / name):
        target = room(module) if module.split(".")[0] == "demp" else ""
        if not target or target == "__version__" or target == home(name):
            continue
        if (name, target) in ALLOWED:
            assert inside, f"{name} imports {module} outside of a function"
            continue
        assert target in LEVEL, f"{name} imports {module}, which has no place in the order"
        if target not in ("errors",):
            assert LEVEL[target] <= mine, f"{name} imports {module}: upwards"


@pytest.mark.parametrize("name", [name for name in FILES if home(name) not in (*DOORS, "__init__")])
def test_the_core_needs_torch_and_safetensors_only(name):
    packages = {module.split(".")[0] for module, _ in imports(ROOT / name)}
    assert packages <= CORE_PACKAGES


@pytest.mark.parametrize("name", [name for name in FILES if home(name) == "report"])
def test_the_report_reads_files_with_the_standard_library(name):
    for module, _ in imports(ROOT / name):
        package = module.split(".")[0]
        assert package in sys.stdlib_module_names or room(module) in FOR_THE_REPORT, module


def test_every_room_has_its_place():
    assert {home(name) for name in FILES} - {"__init__"} == set(LEVEL)


def test_importing_the_core_loads_no_extra():
    import subprocess

    code = """
import sys, demp
demp.trace, demp.cut, demp.DemP, demp.save, demp.inspect, demp.NeuronMonitor, demp.methods.names(), demp.export
extras = {"rich", "tyro", "datasets", "kornia", "PIL", "sklearn", "torchvision", "timm", "transformers", "matplotlib",
          "onnx", "onnxruntime", "lightning", "accelerate", "optuna", "ray", "tensorboard", "wandb", "trackio"}
doors = ("demp.train", "demp.cli", "demp.integrations")
print(sorted(extras & set(sys.modules)), [m for m in sys.modules if m.startswith(doors)])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[] []"
