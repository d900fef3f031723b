"""Who may import whom, read from the source: lower rooms know nothing of higher ones."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import demp

ROOT = Path(demp.__file__).parent
DESIGN = Path(__file__).parent.parent / "docs" / "design.md"


def order() -> list[list[str]]:
    """The table of packages in docs/design.md, lowest first: the names in the first column of every line."""
    table = DESIGN.read_text().partition("| packages | what they hold |")[2].partition("\n\n")[0]
    return [re.findall(r"`([\w.]+)`", line.split("|")[1]) for line in table.splitlines()[2:]]


ORDER = order()
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
OUTER = ("train", "recipes", "integrations", "exports", "experiments", "cli", "__main__")
"""Everything else is the core."""
ALLOWED = {("methods/__init__.py", "pruner")}
"""``methods.create`` makes a pruner: the one look upwards, inside a function."""
FOR_THE_REPORT = ("experiments.report", "errors", "files", "__version__")
CORE_PACKAGES = {"torch", "safetensors", "demp", *sys.stdlib_module_names}


def room(module: str) -> str:
    """demp.graph.tracer -> graph, demp.experiments.sweep.job -> experiments.sweep."""
    names = module.split(".")[1:]
    return ".".join(names[:2] if names[:1] == ["experiments"] else names[:1])


def module_of(name: str) -> str:
    """graph/tracer.py -> graph.tracer, graph/__init__.py -> graph."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


FILES = sorted(file.relative_to(ROOT).as_posix() for file in ROOT.rglob("*.py"))
MODULES = {f"demp.{module_of(name)}" for name in FILES}


@cache
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
            whole = module in ("demp", "demp.experiments")
            names = [f"{module}.{alias.name}" for alias in node.names]
            found += [(name if whole or name in MODULES else module, id(node) in inner) for name in names]
    return [*dict.fromkeys(found)]


def home(name: str) -> str:
    """graph/tracer.py -> graph, experiments/sweep/job.py -> experiments.sweep, errors.py -> errors."""
    return room(f"demp.{module_of(name)}")


def test_only_downwards():
    wrong = []
    for name in FILES:
        for module, inside in imports(ROOT / name) if name != "__init__.py" else ():
            target = room(module) if module.split(".")[0] == "demp" else ""
            if not target or target == "__version__" or target == home(name):
                continue
            if (name, target) in ALLOWED:
                wrong += [] if inside else [f"{name} imports {module} outside of a function"]
            elif target not in LEVEL:
                wrong.append(f"{name} imports {module}, which has no place in the order")
            elif target not in ("errors",) and LEVEL[target] > LEVEL[home(name)]:
                wrong.append(f"{name} imports {module}: upwards")
    assert not wrong, "\n".join(wrong)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The modules that reach one another by imports: each circle sorted."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            new = edges[todo.pop()] - found
            found |= new
            todo += new
        return found

    reach = {module: reached(module) for module in edges}
    found = {frozenset(other for other in reach[one] if one in reach[other]) for one in edges if one in reach[one]}
    return sorted(sorted(circle) for circle in found)


def test_circles_are_found():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"f"}, "f": {"e", "a"}}
    assert circles(edges) == [["b", "c"], ["e", "f"]]


def test_the_modules_of_a_package_import_one_another_in_no_circle():
    """Imports for type checking and inside functions count: who reads one module of a circle has to read them all."""
    found = {}
    for package in {name.partition("/")[0] for name in FILES if "/" in name}:
        own = {module_of(name): name for name in FILES if name.startswith(f"{package}/")}
        edges = {
            module: {target.removeprefix("demp.") for target, _ in imports(ROOT / name)} & own.keys()
            for module, name in own.items()
        }
        found |= {package: here} if (here := circles(edges)) else {}
    assert found == {}


def test_parallel_is_imported_as_one():
    inner = {file.stem for file in (ROOT / "parallel").glob("[a-z]*.py")}
    wrong = [
        f"{name} imports {module}; take what it needs from demp.parallel"
        for name in FILES
        for module, _ in imports(ROOT / name)
        if home(name) != "parallel" and module.startswith("demp.parallel.") and module.split(".")[2] in inner
    ]
    assert not wrong, "\n".join(wrong)


def packages_of(name: str) -> set[str]:
    """The packages that a file imports."""
    return {module.split(".")[0] for module, _ in imports(ROOT / name)}


def test_the_core_needs_torch_and_safetensors_only():
    core = [name for name in FILES if home(name).split(".")[0] not in (*OUTER, "__init__")]
    assert {name: more for name in core if (more := packages_of(name) - CORE_PACKAGES)} == {}


def test_the_report_reads_files_with_the_standard_library():
    wrong = []
    for name in FILES:
        for module, _ in imports(ROOT / name) if home(name) == "experiments.report" else ():
            if module.split(".")[0] not in sys.stdlib_module_names and room(module) not in FOR_THE_REPORT:
                wrong.append(f"{name} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_every_room_has_its_place():
    assert {home(name) for name in FILES} - {"__init__"} == set(LEVEL)


def test_importing_the_core_loads_no_extra():
    import subprocess

    code = """
import sys, demp
demp.trace, demp.cut, demp.DemP, demp.save, demp.inspect, demp.NeuronMonitor, demp.methods.names(), demp.export
extras = {"rich", "tyro", "datasets", "kornia", "PIL", "sklearn", "torchvision", "timm", "transformers", "matplotlib",
          "onnx", "onnxruntime", "lightning", "accelerate", "optuna", "ray", "tensorboard", "wandb", "trackio"}
outer = ("demp.train", "demp.cli", "demp.integrations")
print(sorted(extras & set(sys.modules)), [m for m in sys.modules if m.startswith(outer)])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[] []"
