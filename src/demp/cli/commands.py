"""The commands and their flags: each is a dataclass, its fields are the flags."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

import demp
from demp import recipes
from demp.cli.base import Budget, Command, Count, Flag, Folder, Keeps, Number, Optimizer, Text, Training
from demp.cli.compare import Compare
from demp.cli.demo import run_demo
from demp.cli.inspect import Inspect
from demp.cli.overrides import free_folder, resolve
from demp.cli.plan import Announcement
from demp.cli.report import Report
from demp.cli.study import StudyCommand
from demp.cli.sweep import SweepCommand
from demp.errors import UsageError
from demp.files.schema import flat
from demp.files.suggestion import suggestion
from demp.train import artifact, loop, torchrun
from demp.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Train(Training):
    """Train a network that gets smaller while it learns."""

    method: Text = ""
    """dense, demp, or another method."""
    budget: Budget = ""
    """What may be left: flops, parameters, neurons, memory or latency, as a share of dense (flops=0.4) or a number."""
    strength: Number = None
    """Peak strength of the penalty (lambda), without a budget."""
    noise: Number = None
    """Peak standard deviation of the noise (sigma)."""
    seed: Count = None
    """Seed of everything random."""
    out: Folder = ""
    """Run folder; without it, a new one under runs/."""
    yes: Flag = False
    """Begin a recipe at the paper's length without asking."""

    def run(self) -> dict[str, Any]:
        """Train from the first step.

        Raises:
            UsageError: several processes train, and no folder is named.
        """
        config = resolve(self)
        if not config.out and torchrun.launched():
            raise UsageError("several processes share a run folder, also after a restart; name it with --out FOLDER")
        if not config.out:
            config = config.merged({"out": str(free_folder(_run_name(config)))})
        console = self.console()
        if not self.recipe and not self.config:
            console.print("no --recipe was given: a plain run; `demp recipes` lists the others", highlight=False)
        _print_config(console, config)
        result = loop.train(config, observers=[Announcement(console, sure=self.yes), self.view()])
        print_summary(console, result.summary)
        console.print(f"run folder: {config.out}")
        return {**result.summary, "out": config.out}


@dataclass(frozen=True, kw_only=True)
class Resume(Command):
    """Continue a run from its last checkpoint, as if it had never stopped."""

    run_folder: tyro.conf.Positional[Folder]
    """Folder of the run."""
    trust: Flag = False
    """Let the folder name a model of your own (module:function): building it runs that code."""

    def run(self) -> dict[str, Any]:
        """Continue training from the last checkpoint and return the run's summary."""
        result = loop.resume(self.run_folder, observers=[self.view()], trust=self.trust)
        print_summary(self.console(), result.summary)
        return {**result.summary, "out": self.run_folder}


@dataclass(frozen=True, kw_only=True)
class Eval(Command):
    """Test a trained network on a whole test split."""

    path: tyro.conf.Positional[Folder]
    """Folder of a finished run, or of a saved model."""
    data: Text = ""
    """Data set; without it, the one that the network was trained on."""
    split: Text = ""
    """Split to test on; without it, test or validation."""
    batch_size: int = 512
    """Images per batch."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
    trust: Flag = False
    """Let the folder name a model of your own (module:function): building it runs that code."""

    def run(self) -> dict[str, Any]:
        """Load, test, and print accuracy and cost."""
        result = artifact.evaluate(
            self.path,
            data=self.data,
            split=self.split,
            batch_size=self.batch_size,
            device=self.device,
            trust=self.trust,
        )
        print_summary(self.console(), result)
        return result


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write a trained network for others to load, proven against itself, with a model card."""

    path: tyro.conf.Positional[Folder]
    """Folder of a finished run, or of a model that the trainer saved."""
    to: Text
    """torch-export, onnx, safetensors or state-dict."""
    out: Folder = ""
    """Folder of the export; without it, export-FORMAT in the run."""
    measure: Flag = False
    """Time onnxruntime beside the dense network."""
    trust: Flag = False
    """Let the folder name a model of your own (module:function): building it runs that code."""

    def run(self) -> dict[str, Any]:
        """Export, and say what was checked."""
        out = self.out or str(Path(self.path) / f"export-{self.to}")
        report = demp.export(self.path, out, to=self.to, measure=self.measure, trust=self.trust)
        self.console().print(str(report), highlight=False, markup=False)
        return report.to_dict()


@dataclass(frozen=True, kw_only=True)
class Recipes(Command):
    """List the recipes, or print one as a config file."""

    name: tyro.conf.Positional[Text] = ""
    """Recipe to print as TOML."""
    optimizer: Optimizer = ""
    """Its optimizer."""
    steps: Count = None
    """Its length."""
    width: Number = None
    """Its width."""
    noise_keeps: Keeps = ""
    """What its noise keeps at another length."""

    def run(self) -> dict[str, Any]:
        """Print names, or a whole config."""
        console = self.console()
        if not self.name:
            table = Table("recipe", "what it is", box=None, pad_edge=False)
            for name in recipes.names():
                table.add_row(name, recipes.summary(name))
            console.print(table)
            return {name: recipes.summary(name) for name in recipes.names()}
        wanted = {"optimizer": self.optimizer or None, "steps": self.steps, "width": self.width}
        wanted |= {"noise_keeps": self.noise_keeps or None}
        given = {key: value for key, value in wanted.items() if value is not None}
        config = recipes.get(self.name, **given)
        console.print(config.to_toml(), markup=False, highlight=False)
        return config.to_dict()


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Train a dense and a shrinking network on the digits, and compare them."""

    out: Folder = ""
    """Folder for both runs; without it, a new one under runs/."""
    steps: Count = None
    """Steps of each run; without it, the recipe's."""
    seed: int = 0
    """Seed of both runs."""

    def run(self) -> dict[str, Any]:
        """Train both, print the table, load the artifact in a fresh process.

        Raises:
            UsageError: the folder holds something.
        """
        if self.out and Path(self.out).exists() and any(Path(self.out).iterdir()):
            raise UsageError(f"the folder {self.out} is not empty; give another with --out")
        out = Path(self.out) if self.out else free_folder("demo")
        return run_demo(out, steps=self.steps, seed=self.seed, console=self.console(), view=self.view)


COMMANDS: dict[str, type[Command]] = {
    "train": Train,
    "resume": Resume,
    "inspect": Inspect,
    "eval": Eval,
    "export": Export,
    "compare": Compare,
    "study": StudyCommand,
    "sweep": SweepCommand,
    "report": Report,
    "recipes": Recipes,
    "demo": Demo,
}
"""Every verb."""


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments ask for; tyro explains unknown flags and exits.

    Raises:
        UsageError: there is no such command, or a run is given two budgets.
    """
    verb = arguments[0] if arguments else ""
    if verb not in COMMANDS and not verb.startswith("-"):
        meant = suggestion(verb, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
        raise UsageError(f"there is no command {verb!r}{meant} (demp --help)")
    budgets = [argument for argument in arguments if argument.partition("=")[0] == "--budget"]
    if verb in ("train", "sweep") and len(budgets) > 1:
        raise UsageError(
            "--budget is given more than once, and a run has one budget; give several resources as "
            "--budget flops=0.4,parameters=0.5; `demp compare` makes a run for each budget"
        )
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="demp",
        description=f"Train a network that gets smaller while it learns. demp {demp.__version__} (demp --version).",
        args=list(arguments),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _run_name(config: TrainConfig) -> str:
    data = Path(config.data.name).name
    return f"{config.model.name}-{data}-{config.method.name}-s{config.seed}".replace(":", "-")


def _print_config(console: Console, config: TrainConfig) -> None:
    """One line per part of the resolved config; what is off, empty or zero is left out."""
    values = config.to_dict()
    parts = {"run": {k: v for k, v in values.items() if not isinstance(v, dict)}}
    parts |= {name: value for name, value in values.items() if isinstance(value, dict)}
    for name, part in parts.items():
        if name == "monitor" and not config.monitor.every_steps:
            continue
        words = " ".join(f"{key}={value}" for key, value in flat(part).items() if value)
        console.print(f"{name:<10}{words}", markup=False, highlight=False)


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """The outcome in one table; dense numbers beside it where there are some."""
    table = Table("", "now", "dense", box=None, pad_edge=False)
    table.add_row(f"{summary['split']} accuracy", f"{summary['eval/top1']:.2%}", "")
    for name in ("neurons", "parameters", "flops"):
        dense = summary.get(f"{name}_dense")
        table.add_row(name, f"{summary[name]:,}", f"{dense:,}" if dense is not None else "")
    console.print(table)
