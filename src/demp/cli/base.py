"""What the commands share: kinds of flags, and the flags of a training run."""

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import tyro
from rich.console import Console

from demp.train.choices import Activation, NoiseKeeps, OptimizerName, Precision, SinkName
from demp.train.torchrun import is_main_process

if TYPE_CHECKING:
    from demp.train.observer import Observer


def shown(choices: Any, between: str = "|") -> Any:
    """How the help shows a flag that takes words of a ``Literal``; any other is refused where the word is used."""
    return tyro.conf.arg(metavar=between.join(get_args(choices)), help_behavior_hint="")


Text = Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
File = Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
Optimizer = Annotated[str, shown(OptimizerName)]
Activations = Annotated[str, shown(Activation)]
Keeps = Annotated[str, shown(NoiseKeeps)]
Names = Annotated[str, tyro.conf.arg(metavar="NAME,NAME", help_behavior_hint="")]
Folder = Annotated[str, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]
Number = Annotated[float | None, tyro.conf.arg(metavar="NUMBER", help_behavior_hint="")]
Count = Annotated[int | None, tyro.conf.arg(metavar="COUNT", help_behavior_hint="")]
Budget = Annotated[str, tyro.conf.arg(metavar="RESOURCE=NUMBER", help_behavior_hint="")]
Settings = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="KEY=VALUE", help_behavior_hint="(repeatable)"),
]
Inputs = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="SIZES:TYPE", help_behavior_hint="(repeatable)"),
]


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """A verb of the command line: its fields are its flags, and every verb has these."""

    json: Flag = False
    """Print one JSON object and nothing else on stdout."""
    debug: Flag = False
    """Show the traceback of an error."""

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Do it; the result is what ``--json`` prints."""

    def find_own_code(self) -> None:
        """Let modules of the current folder be found where the command line names one, or trusts who does."""
        typed = str(getattr(self, "model", ""))
        asked = ":" in typed and not Path(typed).exists()
        here = str(Path.cwd())
        if (asked or getattr(self, "trust", False)) and here not in sys.path:
            sys.path.insert(0, here)

    def console(self) -> Console:
        """Where words for people go: aside when stdout belongs to JSON."""
        return Console(file=sys.stderr if self.json else sys.stdout, soft_wrap=True, quiet=not is_main_process())

    def view(self, title: str = "") -> "Observer":
        """Return the progress view, which prints to stderr with ``--json``."""
        from demp.train import progress  # loads torch, which `demp report` does without

        return progress.progress(title, file=sys.stderr if self.json else sys.stdout)


@dataclass(frozen=True, kw_only=True)
class Training(Command):
    """What every command takes that trains."""

    recipe: Text = ""
    """Recipe to start from; `demp recipes` lists them."""
    config: File = ""
    """TOML file that overrides the recipe."""
    model: Text = ""
    """mlp, resnet18, vgg16, resnet50, vit_b_16, timm:NAME, ... or module:function, also of the current folder."""
    data: Text = ""
    """digits, mnist, cifar10, imagenette, imagenet-1k, owner/name on the hub, a folder of images, or a file of them
    (.parquet, .csv, .npz, .pt)."""
    optimizer: Optimizer = ""
    """Optimizer, with the learning rate that the recipe has for it."""
    lr: Number = None
    """Peak learning rate."""
    steps: Count = None
    """Optimizer steps; a recipe is scaled to them."""
    epochs: Number = None
    """Passes over the training data, instead of steps."""
    noise_keeps: Keeps = ""
    """What the noise of a shorter run keeps: rate (noise over learning rate, the default) or displacement (how far it
    moves weights in all)."""
    batch_size: Count = None
    """Images per step."""
    width: Number = None
    """Factor on the network's hidden widths."""
    activation: Activations = ""
    """Activation of a model of the paper."""
    device: Text = ""
    """cpu, cuda, ...; without it, the GPU if there is one."""
    precision: Annotated[str, shown(Precision)] = ""
    """Format of the numbers in forwards and backwards."""
    sink: Annotated[str, shown(SinkName, ",")] = ""
    """Viewers that get the metrics, too."""
    trust: Flag = False
    """Let the file of --config name a model of your own (module:function): building it runs that code."""
    set: Settings = ()
    """KEY=VALUE for any other field of the config, for example schedule.name=cosine."""
