"""Builders of dense models by the kind of MODEL; none downloads anything.

A new kind of MODEL is one function here and its prefix in ``LIBRARIES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os.path import isdir, isfile  # which answer for every text
from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import ConfigError, did_you_mean
from secateur.runtime.configs import check_no_code
from secateur.runtime.extras import library
from secateur.runtime.io import read_text_of
from secateur.types import Example

from .inputs import image, tokens_or_image
from .places import imported

REMOTE = "trust_remote_code"
KINDS = (
    "module:callable, file.py:callable, torchvision:NAME, timm:NAME, a Hugging Face folder, "
    "or a folder that secateur wrote"
)


def build(model: str, arguments: Mapping[str, Any]) -> tuple[nn.Module, Example | None]:
    """Return the model that MODEL names and, where it is known, what it takes.

    Raises:
        ConfigError: MODEL is not one of ``KINDS``, or names nothing.
        MissingExtraError: it needs a library that is not installed.
    """
    prefix, _, name = model.partition(":")
    if prefix in LIBRARIES and name:
        return LIBRARIES[prefix](name, arguments)
    folder = Path(model)
    if isfile(folder / "config.json"):
        return _transformers(folder, arguments)
    if isdir(folder):
        raise ConfigError(f"{folder}: holds neither a record.json of secateur nor a config.json")
    if not name:
        raise ConfigError(f"{model!r} is no MODEL: give {KINDS}")
    made = imported(model)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise ConfigError(f"{model} is a {type(made).__name__}, not a model")
        made = made(**arguments)
    example = None
    if isinstance(made, tuple) and len(made) == 2:  # a function may return both
        made, example = made
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{model} returned a {type(made).__name__}, not a torch.nn.Module")
    return made, example


def _torchvision(name: str, arguments: Mapping[str, Any]) -> tuple[nn.Module, Example]:
    models = library("torchvision.models", "torchvision", "torchvision models")
    known = models.list_models()
    if name not in known:
        raise ConfigError(f"torchvision has no model {name!r}.{did_you_mean(name, known)}")
    return models.get_model(name, **{"weights": None, **arguments}), image(3, 224)


def _timm(name: str, arguments: Mapping[str, Any]) -> tuple[nn.Module, Example]:
    timm = library("timm", "timm", "timm models")
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        raise ConfigError(f"timm has no model {name!r}.{did_you_mean(name, known)}")
    model = timm.create_model(name, **{"pretrained": False, **arguments})
    channels, height, width = timm.data.resolve_model_data_config(model)["input_size"]
    return model, image(channels, height, width)


def _transformers(folder: Path, arguments: Mapping[str, Any]) -> tuple[nn.Module, Example | None]:
    transformers = library("transformers", "transformers", "a Hugging Face folder", "hf")
    given = {
        REMOTE: False,
        **arguments,
    }  # unsaid, transformers would ask whoever is at the terminal
    if not given[REMOTE]:
        check_no_code(folder / "config.json")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **given)
    classes = [getattr(transformers, str(n), None) for n in config.architectures or ()]
    models = (c for c in classes if isinstance(c, type) and issubclass(c, nn.Module))
    builder: Any = next(models, transformers.AutoModel)
    if files := sorted(folder.glob("*.safetensors")):
        for file in files:  # of a damaged one transformers does not say which it is
            read_text_of(file)
        remote = {REMOTE: given[REMOTE]}
        model, info = builder.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **remote,
        )
        _check_loaded(folder, model, info, named=builder is not transformers.AutoModel)
    else:
        _check_absent(folder)
        from_config = getattr(builder, "_from_config", None) or builder.from_config
        model = from_config(config)
    return model, tokens_or_image(model)


def _check_loaded(folder: Path, model: nn.Module, info: Mapping[str, Any], named: bool) -> None:
    """Refuse weights that are not this class's: some would be random, or lost."""
    kind = type(model).__name__
    for found, why in (("missing_keys", "would be random"), ("unexpected_keys", "would be lost")):
        names = sorted(map(str, info.get(found) or ()))
        if names and not (found == "unexpected_keys" and named):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConfigError(
                f"{folder}: as a {kind}, {', '.join(names[:3])}{more} {why}: let config.json name "
                "the class of the weights under 'architectures'"
            )


def _check_absent(folder: Path) -> None:
    """Refuse weights in files that are not read: random ones would be taken in their place."""
    found = sorted(path.name for kind in UNREAD for path in folder.glob(kind))
    if found:
        raise ConfigError(
            f"{folder}: {found[0]} is not read, because reading it can run code, and there are no "
            "safetensors: load the model with transformers and save_pretrained() it again"
        )


UNREAD = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf")
"""Weights in a Hugging Face folder that are no safetensors."""
LIBRARIES: dict[str, Callable[[str, Mapping[str, Any]], tuple[nn.Module, Example | None]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
}
"""Prefix of MODEL → the function that builds one by name and says what it takes."""
