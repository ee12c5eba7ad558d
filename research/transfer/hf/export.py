"""A trained transformer as a Hugging Face folder: what transformers' from_pretrained and AutoTokenizer load.

config.json, model.safetensors (or shards and model.safetensors.index.json), generation_config.json of a language
model, and the tokenizer's files
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import UserError
from research.transfer.formats import safetensors
from research.transfer.formats.files import write_bytes
from research.transfer.hf import configs
from research.transfer.load import dump

MODEL = "transformer"
METADATA = {"format": "pt"}  # without which transformers refuses the file
MAX_SHARD_BYTES = int(5e9)


def write(
    out_dir: Path,
    params: Any,
    options: dict[str, Any],
    *,
    head: str,
    vocab_size: int,
    class_names: tuple[str, ...] = (),
    tokenizer_files: dict[str, str] | None = None,
    model_type: str = "",
    pad: int | None = None,
    bos: int | None = None,
    eos: int | Sequence[int] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> str:
    """Writes the folder; the same arguments give the same bytes.

    Args:
      out_dir: made if need be. Files of these names are replaced; shards of an older export are not looked for.
      params: the model's parameters, arrays on the host or on devices; float32 in the file.
      options: config.model.
      head: 'classify', 'lm' or 'mlm'.
      vocab_size: rows of the embedding.
      class_names: of head 'classify'.
      tokenizer_files: name -> text.
      model_type, pad, bos, eos: as `configs.from_model` takes them.
      max_shard_bytes: of arrays in a file; one array may be more.

    Returns:
      The model_type that was written.

    Raises:
      UserError: no model_type of transformers has these options, or the parameters are of another model.
    """
    config = configs.from_model(
        options,
        head=head,
        vocab_size=vocab_size,
        class_names=class_names,
        model_type=model_type,
        pad=pad,
        bos=bos,
        eos=eos,
    )
    kind = configs.TYPES[config["model_type"]]
    rows = params["embed"]["embedding"].shape[0]
    if rows != vocab_size:
        raise UserError(f"--format=hf: the embedding has {rows} rows for {vocab_size} tokens")
    if head == "classify" and len(class_names) == vocab_size:  # a head's name goes by its width
        raise UserError(
            f"--format=hf: as many classes as tokens, {vocab_size}, can't be told apart"
        )
    arrays = dump(params, {}, model=MODEL, options=options, naming=kind.naming)
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    files = {name: text.encode() for name, text in (tokenizer_files or {}).items()}
    files["config.json"] = _json(config)
    if head == "lm":
        ids = {f"{key}_token_id": config[f"{key}_token_id"] for key in ("bos", "eos", "pad")}
        files["generation_config.json"] = _json({"_from_model_config": True, **ids})
    _write_arrays(out_dir, arrays, max_shard_bytes)
    for name, content in files.items():
        write_bytes(out_dir / name, content)
    return kind.name


def shards(arrays: dict[str, np.ndarray], most: int) -> list[dict[str, np.ndarray]]:
    """Divides arrays, by name in order, so that each part has at most so many bytes, or one array."""
    parts: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name in sorted(arrays):
        if parts[-1] and size + arrays[name].nbytes > most:
            parts.append({})
            size = 0
        parts[-1][name] = arrays[name]
        size += arrays[name].nbytes
    return parts


def _write_arrays(out_dir: Path, arrays: dict[str, np.ndarray], most: int) -> None:
    parts = shards(arrays, most)
    if len(parts) == 1:
        safetensors.write(out_dir / safetensors.SINGLE, arrays, METADATA)
        return
    places: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        safetensors.write(out_dir / name, part, METADATA)
        places |= dict.fromkeys(part, name)
    total = sum(array.nbytes for array in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    write_bytes(out_dir / safetensors.INDEX, _json(index))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
