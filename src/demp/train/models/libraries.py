"""Random-weight models of timm, torchvision and transformers, imported when asked for."""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from demp.errors import UsageError
from demp.files.suggestion import suggestion

HEADS = {
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "AutoModelForAudioClassification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING",
}
"""Heads of transformers models and the configurations that they serve, in order of preference."""


class ImageLogits(nn.Module):
    """A transformers image classifier as plain PyTorch: images in, logits out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images, (batch, classes)."""
        return self.model(pixel_values=images).logits


def timm(name: str, num_classes: int, in_channels: int, image_size: int, options: dict[str, Any]) -> nn.Module:
    """An architecture of timm; those that are built for one image size get ``image_size``.

    Raises:
        UsageError: the package, the model or an option of it is not there.
    """
    with _package("timm"):
        library = importlib.import_module("timm")
    if not library.is_model(name):
        raise _unknown("timm", "model", name, library.list_models())
    arguments = {"num_classes": num_classes, "in_chans": in_channels}
    published = library.models.get_pretrained_cfg(name)
    if published is not None and published.fixed_input_size:
        arguments["img_size"] = image_size
    with _naming_option(f"timm:{name}", options):
        return library.create_model(name, **arguments | options)


def torchvision(name: str, num_classes: int, in_channels: int, image_size: int, options: dict[str, Any]) -> nn.Module:
    """A classification architecture of torchvision.

    Raises:
        UsageError: the package, the model or an option of it is not there, or the images have not three channels.
    """
    with _package("torchvision"):
        library = importlib.import_module("torchvision.models")
    if name not in library.list_models(module=library):
        raise _unknown("torchvision", "model", name, library.list_models(module=library))
    if in_channels != 3:
        raise UsageError(
            f"torchvision models read 3 channels, not {in_channels}; convert the images, or take a timm model"
        )
    arguments = {"num_classes": num_classes}
    if name.startswith("vit_"):
        arguments["image_size"] = image_size
    with _naming_option(f"torchvision:{name}", options):
        return library.get_model(name, **arguments | options)


def transformers(name: str, num_classes: int, in_channels: int, image_size: int, options: dict[str, Any]) -> nn.Module:
    """A model of transformers from the configuration type ``name``; ``options`` are its fields.

    Raises:
        UsageError: the package, the type or a field of it is not there.
    """
    with _package("transformers"):
        library = importlib.import_module("transformers")
    if name not in library.CONFIG_MAPPING:
        raise _unknown("transformers", "configuration type", name, library.CONFIG_MAPPING)
    with _package("transformers"):
        standard = library.AutoConfig.for_model(name)
    for option in options:
        if not (hasattr(standard, option) or hasattr(standard, f"_{option}")):
            fields = suggestion(option, standard.to_dict()) or "; remove it"
            raise UsageError(f"model 'transformers:{name}' has no option {option!r}{fields}")
    arguments = {"num_labels": num_classes}
    image = {"num_channels": in_channels, "image_size": image_size}
    arguments |= {key: value for key, value in image.items() if hasattr(standard, key)}
    config = library.AutoConfig.for_model(name, **arguments | options)
    with _package("transformers"):
        if getattr(config, "is_encoder_decoder", False) and getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = config.pad_token_id or 0  # T5's forward reads it, and its config has none
        fitting = (head for head, served in HEADS.items() if type(config) in getattr(library, served))
        head = next(fitting, "AutoModel")
        model = getattr(library, head).from_config(config)
    return ImageLogits(model) if head == "AutoModelForImageClassification" else model


def _unknown(library: str, noun: str, name: str, known: Any) -> UsageError:
    hint = suggestion(name, known) or f"; see the documentation of {library} for their names"
    return UsageError(f"{library} has no {noun} {name!r}{hint}")


@contextmanager
def _package(package: str) -> Iterator[None]:
    """Turn a failing import into one sentence that says what to install."""
    try:
        yield
    except (ImportError, RuntimeError) as error:
        if any("torchvision::" in str(cause) for cause in _causes(error)):
            raise UsageError(
                f"torchvision does not load next to torch {torch.__version__}; reinstall it in the "
                "version made for this torch, from the same package index"
            ) from error
        if not isinstance(error, ImportError):
            raise
        raise UsageError(f"{package} models need more packages ({error}); run: pip install 'demp[models]'") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _naming_option(model: str, options: dict[str, Any]) -> Iterator[None]:
    """Turn the refusal of an option into one sentence."""
    try:
        yield
    except TypeError as error:
        match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if match is None or match[1] not in options:
            raise
        raise UsageError(f"model {model!r} has no option {match[1]!r}; remove it") from error
