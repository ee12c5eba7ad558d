"""Writes a trained model as weights for other libraries, or as a program that runs without this project."""

import importlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from research import modes
from research.config import resolve
from research.engine import files
from research.errors import UserError, nearest
from research.modes.exports import program, weights

PROGRAMS = ("onnx", "stablehlo", "savedmodel")
# Files of arrays: what they are called, and how one reads them where no project is at hand.
WEIGHTS = {
    "safetensors": (
        "model.safetensors",
        "from safetensors.numpy import load_file\narrays = load_file({path!r})",
    ),
    "torch": (
        "model.pth",
        "import torch\nstate_dict = torch.load({path!r}, weights_only=True)\n"
        "# network.load_state_dict(state_dict), of the library whose names these are",
    ),
    "keras": ("model.keras", "import keras\nmodel = keras.saving.load_model({path!r})"),
}
ADAPTERS = {
    "peft": (
        "adapter_model.safetensors",
        "import peft\n{base}\nmodel = peft.PeftModel.from_pretrained(base, {folder!r})",
    )
}
FOLDERS = {
    "hf": (
        "model.safetensors",
        "import transformers\nmodel = transformers.{cls}.from_pretrained({folder!r})\n"
        "tokenizer = transformers.AutoTokenizer.from_pretrained({folder!r})",
    )
}
FORMATS = (*WEIGHTS, *PROGRAMS, *ADAPTERS, *FOLDERS)
NORMALISED = (
    "(image / 255 - mean) / std, channels last here and in Keras, first in PyTorch's networks"
)
AUTO = {
    "classify": "AutoModelForSequenceClassification",
    "lm": "AutoModelForCausalLM",
    "mlm": "AutoModelForMaskedLM",
}  # a task's head -> what loads it
ABOUT, README, ADAPTER = "preprocess.json", "README.md", "adapter_config.json"


class Model(NamedTuple):
    """A trained model without what it was trained by: adapters are merged."""

    task: Any
    params: Any
    model_state: Any


def run(config: Any, mistakes: list[str], flags: Any) -> int:
    path = modes.demand(config, mistakes, flags)
    format, naming = _parse(flags.format or "")
    naming = _naming(config, format, naming)
    out = _directory(flags.output or "")
    layout, task, restored = modes.restore(config, path)
    from research.engine import adapters, unmerged

    base = unmerged.base_of(config, task) if format in ADAPTERS else None
    if format in ADAPTERS and not naming:
        naming = adapters.naming_in_memory(config, base)
    model = exported(config, path, layout, restored.state)

    from research.engine.state import params_sha256

    about = {
        **model.task.about,
        **({"normalised": NORMALISED} if "image" in model.task.about["inputs"] else {}),
        "model": dict(config.model.items()),
        "naming": naming,
        "params_sha256": params_sha256(model.params),
        "step": int(restored.step),
        "config": config.to_dict(),
    }
    about = json.loads(json.dumps(about, default=files.plain))
    _demand_same_weights(out, about, format)
    out.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".export-", dir=out))
    try:
        target = staging / _file(format)
        if format in ADAPTERS:
            unmerged.write(staging, config, restored.state, task, naming, base)
            lines = [f"{naming} names"]
        elif format in FOLDERS:
            kind = weights.write_folder(staging, config, model, naming)
            lines = [f"a {kind} of transformers"]
        elif format in WEIGHTS:
            weights.write(target, format, naming, config, model, about)
            lines = [f"{naming} names"]
        else:
            lines = [program.write(target, format, config, model, about, task, restored.state)]
        if format in WEIGHTS or format in ADAPTERS:  # a folder of its own kind holds them already
            for name, text in model.task.files.items():
                files.write_text(staging / name, text)
        use = _use(format, out / _file(format), about)
        # Which format each file is of, so that another does not take its place.
        written = {p.name: format for p in staging.iterdir()}
        about["files"] = dict(sorted({**_about(out).get("files", {}), **written}.items()))
        files.write_json(staging / ABOUT, about)
        files.write_text(staging / README, _readme(format, use, about))
        _move(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    print(f"written to {out / _file(format)}: {'; '.join(lines)}", use, sep="\n\n")
    print(f"\nwhat its inputs and outputs are stands in {out / ABOUT}")
    return 0


def exported(config: Any, path: Path, layout: Any, state: Any) -> Model:
    """Returns the parameters that evaluation uses, as those of a plain model, on the host."""
    import jax

    from research.config import as_trained
    from research.engine.state import evaluated_params

    params = jax.device_get(evaluated_params(state))
    config = as_trained(config, path)
    if config.lora.rank:
        from research.transfer import lora

        params = lora.merge(params, config.lora)
        config, _ = resolve(config, [("lora.rank", "0")])
    task = modes.make_task(config, layout)
    shapes = jax.eval_shape(task.init, jax.random.key(0))[1]
    return Model(task, params, jax.device_get({key: state.model_state[key] for key in shapes}))


def _parse(text: str) -> tuple[str, str]:
    """'torch:timm' -> ('torch', 'timm')."""
    format, _, naming = text.partition(":")
    if format not in FORMATS:
        wrong = f"--format={format}: there is no such format{nearest(format, FORMATS)}"
        raise UserError(
            f"{wrong if text else 'give --format=NAME'}; there are {', '.join(FORMATS)}"
        )
    if naming and format in PROGRAMS:
        raise UserError(f"--format={text}: a program has no naming; leave out ':{naming}'")
    return format, naming


def _naming(config: Any, format: str, naming: str) -> str:
    """Whose names a file of weights has: as given, else config.pretrained.naming, else the family's first that fits.

    '' where that is told later.
    """
    if format in PROGRAMS:
        return ""
    if format in FOLDERS:
        return naming or _model_type(config)
    from research.transfer.recognise import namings_of
    from research.transfer.tables import KERAS, OWN, TORCH

    if format in ADAPTERS and not config.lora.rank:
        raise UserError(
            f"--format={format}: the run has no adapters (config.lora.rank=0); use another format"
        )
    name = config.model.name
    fitting = {
        "safetensors": (OWN.convention, TORCH, KERAS),
        "torch": (OWN.convention, TORCH),
        "keras": (KERAS,),
        "peft": (TORCH,),
    }[format]
    there = [n.name for n in namings_of(name) if n.convention in fitting]
    if naming:
        if naming not in there:
            raise UserError(
                f"--format={format}:{naming}: model {name} has no such naming there{nearest(naming, there)}; "
                f"there are: {', '.join(there) or 'none'}"
            )
        return naming
    if format == "safetensors":
        return "own"
    if format in ADAPTERS and there:
        return ""  # the base's own, which is told once it is read
    _demand_built(config, format)
    if config.pretrained.naming in there:
        return config.pretrained.naming
    foreign = [n for n in there if n != "own"]
    if not foreign:
        rest = f"--format={format}:own, " if format == "torch" else ""
        raise UserError(
            f"--format={format}: model {name} has no names in that library; use {rest}--format=safetensors or a program"
        )
    return foreign[0]


def _model_type(config: Any) -> str:
    """What the weights that a run began with said they were; '' where they said nothing."""
    if not config.pretrained.source.startswith(("hf:", "package:")):
        return ""
    from research.transfer.hf import configs

    try:
        return configs.about(config.pretrained.source).model_type
    except UserError:  # it may be gone by now
        return ""


def _demand_built(config: Any, format: str) -> None:
    """Raises UserError if the library whose names would be written builds no such network."""
    family = f"research.transfer.families.{config.model.name}"
    if importlib.util.find_spec(family) is None:
        return
    not_built = getattr(importlib.import_module(family), "not_built", None)
    if not_built and (why := not_built(config.model.to_dict())):
        raise UserError(
            f"--format={format}: no library builds a {config.model.name} with {why}; use --format={format}:own, "
            f"or name the naming, --format={format}:torchvision, and build the network yourself"
        )


def _file(format: str) -> str:
    if format not in PROGRAMS:
        return (WEIGHTS | ADAPTERS | FOLDERS)[format][0]
    return importlib.import_module(f"research.transfer.programs.{format}").FILE


def _use(format: str, path: Path, about: dict[str, Any]) -> str:
    if format not in PROGRAMS:
        given = {
            "path": str(path),
            "folder": str(path.parent),
            "cls": AUTO.get(about.get("head", "")),
            "base": _base(about),
        }
        return (WEIGHTS | ADAPTERS | FOLDERS)[format][1].format(**given)
    return importlib.import_module(f"research.transfer.programs.{format}").USE.format(
        path=str(path)
    )


def _base(about: dict[str, Any]) -> str:
    """The line that loads the model which adapters are for."""
    source = about["config"]["pretrained"]["source"]
    cls = AUTO.get(about.get("head", ""))
    if cls is None or not source.startswith(("hf:", "package:")):
        return "# base: the model that these adapt, built and loaded"
    from research.transfer.hf.folder import folder_of

    try:
        place = str(folder_of(source)) if source.startswith("package:") else source[3:]
    except UserError:  # it may be gone by now
        place = source
    labels = f", num_labels={len(about['classes'])}" if "classes" in about else ""
    return f"import transformers\nbase = transformers.{cls}.from_pretrained({place!r}{labels})"


def _directory(text: str) -> Path:
    """Raises UserError where an export would stand among files of another kind."""
    if not text:
        raise UserError("give --output=DIR, the directory to write")
    out = Path(text)
    if out.is_file():
        raise UserError(f"--output={out}: is a file; name a directory")
    names = (
        sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) if out.is_dir() else []
    )
    known = {ABOUT, README, ADAPTER, *map(_file, FORMATS), *_about(out).get("files", ())}
    if names and (not set(names) <= known or "params_sha256" not in _about(out)):
        foreign = [name for name in names if name not in known] or names
        raise UserError(
            f"--output={out}: holds other files ({', '.join(foreign[:3])}); name a new directory, or that of an export"
        )
    return out


def _demand_same_weights(out: Path, about: dict[str, Any], format: str) -> None:
    """Files of several formats may lie side by side if one description holds for all, and none has another's name."""
    file = _file(format)
    other = _about(out).get("files", {}).get(file, format)
    if other != format:
        raise UserError(
            f"--output={out}: its {file} is of --format={other}; name another directory"
        )
    others = [name for name in map(_file, FORMATS) if name != file and (out / name).exists()]
    old = str(_about(out).get("params_sha256"))
    if others and old != about["params_sha256"]:
        raise UserError(
            f"--output={out}: holds {', '.join(others)} of other weights (params_sha256 {old[:16]}, "
            f"and now {about['params_sha256'][:16]}); name another directory"
        )


def _about(out: Path) -> dict[str, Any]:
    return files.read_json(out / ABOUT, {}) or {}


def _readme(format: str, use: str, about: dict[str, Any]) -> str:
    shape = about["inputs"].get("image")
    if format in PROGRAMS:
        text = (
            f"`images` is uint8 [B, {', '.join(map(str, shape))}] from 0 to 255, any B. The outputs, float32 "
            f"[B, {len(about['classes'])}] each, are `logits` and `probabilities`. Normalisation is inside."
        )
    elif shape:
        text = f"Arrays have the names of '{about['naming']}'. Its inputs are normalised: {about['normalised']}."
    else:
        text = "Its inputs are tokens, int32 [B, T], of the tokenizer beside it."
    return (
        f"# {about['model']['name']}, {format}\n\n```python\n{use}\n```\n\n{text}\n\n"
        f"Classes, mean, standard deviation, the model's options and the config it was trained by: `{ABOUT}`.\n"
    )


def _move(staging: Path, out: Path) -> None:
    """Puts what was written in place of what was there, the description last."""
    for path in sorted(staging.iterdir(), key=lambda p: p.name == ABOUT):
        target = out / path.name
        if target.is_dir():  # which no rename replaces
            os.replace(target, staging.with_name(staging.name + "-old"))
            os.replace(path, target)
            shutil.rmtree(staging.with_name(staging.name + "-old"))
        else:
            os.replace(path, target)
