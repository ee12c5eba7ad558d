"""A trained model as a file of arrays, or as a folder that transformers loads."""

import importlib
import json
from pathlib import Path
from typing import Any

from research.errors import UserError
from research.modes.exports.program import texts

CONFIG = "tokenizer_config.json"
UNLIMITED = 10**30  # what transformers writes where a tokenizer has no longest text


def write(
    path: Path, format: str, naming: str, config: Any, model: Any, about: dict[str, Any]
) -> None:
    """Writes a file of arrays."""
    from research.transfer.formats import keras, safetensors, torch
    from research.transfer.load import dump

    name = config.model.name
    options = {key: value for key, value in config.model.items() if key != "name"}
    arrays = dump(model.params, model.model_state, model=name, options=options, naming=naming)
    if format == "safetensors":
        safetensors.write(path, arrays, {"format": "pt", **texts(about)})
    elif format == "torch":
        torch.write(path, arrays)
    else:
        if "image" not in about["inputs"]:
            raise UserError("--format=keras: is for models of pictures; use hf or safetensors")
        family = importlib.import_module(f"research.transfer.families.{name}")
        shape = tuple(model.task.about["inputs"]["image"])
        keras.write(
            path, family.architecture(options, shape, len(model.task.about["classes"])), arrays
        )


def write_folder(folder: Path, config: Any, model: Any, model_type: str) -> str:
    """Writes a Hugging Face folder, tokenizer and all, and returns its model_type.

    Args:
      model_type: the one to write; '' takes that of the weights it began with, or the first that has the options.

    Raises:
      UserError: no model of transformers has these options.
    """
    from research.data.tokenizer import Tokenizer
    from research.transfer.hf import export

    about, name = model.task.about, config.model.name
    if name != export.MODEL:
        raise UserError(
            f"--format=hf: is for model {export.MODEL}, this is a {name}; use --format=safetensors"
        )
    tokenizer = Tokenizer(model.task.files)
    options = {key: value for key, value in config.model.items() if key != "name"}
    if about["head"] == "classify" and options.get("causal", True):
        tokenizer = tokenizer.with_padding()  # which it finds the last token by
    return export.write(
        folder,
        model.params,
        options,
        head=about["head"],
        vocab_size=model.params["embed"]["embedding"].shape[0],
        class_names=tuple(about.get("classes", ())),
        tokenizer_files=_with_length(tokenizer.to_files(), options),
        model_type=model_type,
        pad=tokenizer.pad,
        bos=tokenizer.bos,
        eos=about.get("ends") or tokenizer.eos,
    )


def _with_length(files: dict[str, str], options: dict[str, Any]) -> dict[str, str]:
    """A tokenizer's files, which say how many tokens the model takes if they said nothing of it."""
    from research.transfer.hf.options import DEFAULTS

    config = json.loads(files[CONFIG])
    if (config.get("model_max_length") or UNLIMITED) < UNLIMITED:
        return files
    given = DEFAULTS | options
    longest = given["context"] - given["position_offset"] * (given["position"] == "learned")
    text = json.dumps(config | {"model_max_length": longest}, indent=2, ensure_ascii=False)
    return {**files, CONFIG: f"{text}\n"}
