"""`demp inspect`: what could be removed from a network."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import nn

import demp
from demp.analysis.inspection import Inspection
from demp.cli.base import Activations, Command, Count, Flag, Inputs, Settings, Text
from demp.cli.inputs import image_of, parse_inputs
from demp.cli.overrides import parse_settings
from demp.errors import TraceError
from demp.graph.reading import REMEDY
from demp.train import artifact
from demp.train.models import build, example_inputs, usual_images

logger = logging.getLogger("demp")


@dataclass(frozen=True, kw_only=True)
class Inspect(Command):
    """Show which neurons of a network could be removed, what they own, and what is refused."""

    model: tyro.conf.Positional[Text]
    """Name of a model as for `demp train`, or the folder of a run or a saved model."""
    input: Inputs = ()
    """Sizes of an input that is no image, then its type: 1,16:int64; for each input, in the forward's order or with
    names: input_ids=1,16:int64."""
    image_size: Count = None
    """Side of the images; without it, the model's usual one."""
    channels: int = 3
    """Channels of the images."""
    classes: Count = None
    """Size of the head; without it, the model's usual one."""
    width: float = 1.0
    """Factor on the network's hidden widths."""
    activation: Activations = ""
    """Activation of a model of the paper."""
    option: Settings = ()
    """KEY=VALUE for an argument of the model's constructor."""
    trust: Flag = False
    """Let the folder name a model of your own (module:function): building it runs that code."""
    streams: Flag = False
    """Offer the channels of streams between norms, too: the embedding width of a transformer."""
    linear: Flag = False
    """Offer neurons that are read before any activation, too: the bottlenecks of MobileNetV2."""

    def run(self) -> dict[str, Any]:
        """Trace the network and print the table."""
        given = parse_inputs(self.input) if self.input else ()
        if Path(self.model).is_dir():
            model, facts = artifact.load(self.model, trust=self.trust)
            found = self._inspect(model, given or example_inputs(model, facts.channels, facts.image_size))
        else:
            found = self._inspect_new(given)
        self.console().print(found.render(), markup=False, highlight=False)
        return found.to_dict()

    def _inspect_new(self, given: Any) -> Inspection:
        """A network by its name: on meta, where it takes no memory, or as it is if it does not run there."""
        size, classes = usual_images(self.model)
        shape = image_of(given) or (self.channels, self.image_size or size)

        def inspected(device: str) -> Inspection:
            with torch.device(device):
                model = build(
                    self.model,
                    num_classes=self.classes or classes,
                    in_channels=shape[0],
                    image_size=shape[1],
                    width=self.width,
                    activation=self.activation or None,
                    **parse_settings(self.option),
                )
            return self._inspect(model, given or example_inputs(model, *shape))

        try:
            return inspected("meta")
        except Exception as error:  # a constructor may need values, and its own mistakes are told below
            logger.debug("%s does not run on meta: %s", self.model, error)
        return inspected("cpu")

    def _inspect(self, model: nn.Module, inputs: Any) -> Inspection:
        try:
            return demp.inspect(model, inputs, streams=self.streams, linear=self.linear)
        except TraceError as error:
            remedy = "Say what its forward takes with --input SIZES:TYPE, such as 1,16:int64 or input_ids=1,16:int64"
            raise TraceError(str(error).replace(REMEDY, remedy)) from error
