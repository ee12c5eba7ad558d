"""Where a Hugging Face model lies: config.json, weights and tokenizer in one folder."""

import json
import os
import re
from pathlib import Path
from typing import Any

from research.errors import UserError

CONFIG = "config.json"
# What is fetched from the hub: no pickles, no programs, no weights for other libraries.
FETCHED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_HUB = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


def folder_of(source: str) -> Path:
    """Returns the folder of a Hugging Face model.

    Args:
      source: 'hf:FOLDER'; 'hf:ORG/NAME' or 'hf:ORG/NAME@REVISION' of the hub, which is fetched into its cache where
        no such folder is here; 'package:NAME' (the folder inside the installed package that holds config.json beside
        the weight file); 'safetensors:FOLDER' or a file in it.

    Raises:
      UserError: no such folder, the hub can't be reached or has no such model, or the source is of another kind.
    """
    kind, _, place = source.partition(":")
    if kind == "hf" and place:
        return _local_or_fetched(place)
    if kind == "package" and place:
        from research.transfer.formats import package_file

        folder = package_file(place).parent
    elif kind == "safetensors" and place:
        path = Path(place)
        folder = path if path.is_dir() else path.parent
    else:
        raise UserError(
            f"source '{source}': a Hugging Face folder was expected: hf:FOLDER, hf:ORG/NAME, package:NAME or "
            "safetensors:FOLDER"
        )
    if not (folder / CONFIG).is_file():
        raise UserError(f"source '{source}': no {CONFIG} beside the weights in {folder}")
    return folder


def config_of(source: str) -> dict[str, Any]:
    """Returns what config.json of a source's folder says.

    Raises:
      UserError: there is no folder, or no such file in it, or it isn't a JSON object.
    """
    path = folder_of(source) / CONFIG
    if not path.is_file():
        raise UserError(
            f"source '{source}': {path.parent} holds no {CONFIG}; put the model's there"
        )
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: must hold a JSON object, not {type(config).__name__}")
    return config


def _local_or_fetched(place: str) -> Path:
    folder = Path(place)
    try:
        if folder.is_dir():
            return folder
    except OSError as error:  # a name too long, a folder that may not be entered
        raise UserError(f"source 'hf:{place[:80]}': {error.strerror}") from error
    named = _HUB.fullmatch(place)
    if named is None or folder.exists():
        raise UserError(
            f"source 'hf:{place}': no such folder; name one that holds {CONFIG} and the weights"
        )
    return Path(_fetch(place, named[1], named[2]))


def _fetch(place: str, name: str, revision: str | None) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"source 'hf:{place}': no such folder here, and the Hugging Face hub"
    try:
        return snapshot_download(name, revision=revision, allow_patterns=list(FETCHED))
    except GatedRepoError as error:
        raise UserError(
            f"{where} gives it only to those who accepted its terms: log in (hf auth login), or download it yourself"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"{where} has no model '{name}' for you") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{where} has no revision '{revision}' of '{name}'") from error
    except LocalEntryNotFoundError as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise UserError(
            f"{where} cannot be reached from this machine{offline}; download the model elsewhere and give its folder"
        ) from error
    except OSError as error:  # a request that fails later, a disk that is full
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where} did not deliver '{name}': {text}") from error
