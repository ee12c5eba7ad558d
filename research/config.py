"""Configs: read, overridden, checked, JSON in and out; their defaults stand in defaults.py.

A config file holds `get_config(arg)`, which takes `defaults()` and changes what its experiment needs. `load` reads such
a file, applies `--config.a.b=value` overrides and fills in the options of everything that is named (model, task,
optimizer, schedule): an option is a parameter that has a default in the signature of the thing named. What is left
over, misspelt, of the wrong type or out of range comes back as one list of mistakes.
"""

import ast
import importlib
import importlib.util
import inspect
import json
import math
import pkgutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from research.defaults import RANGES, defaults
from research.durations import UNITS, is_duration
from research.errors import UserError, UserErrors, nearest

# Two configs that differ only in these describe the same experiment: the workdir may be gone on with.
FREE = (
    "parallel.",
    "checkpoint.every",
    "checkpoint.keep",
    "log.",
    "data.cache_dir",
    "data.prefetch",
    "data.loader",
    "data.workers",
    "optimizer.regroup",
    "generate.",
)


# Where something lies. What lies there is checked by itself.
PLACES = (
    "data.path",
    "tokenizer.path",
    "resume",
    "pretrained.source",
    "lora.adapter",
    "distill.teacher",
)


# What is looked up by its name, and brings options of its own.
NAMED = ("task", "model", "data", "optimizer", "optimizer.schedule")


# As config.model.name: the model that config.pretrained.source's own config.json describes.
PRETRAINED = "pretrained"
ALWAYS = ("model.name", "pretrained.naming")  # of what it says, also where a config has its own


# Of what a default does not show.
EXAMPLES = {
    "pretrained.rules": "\"((r'^head/', 'skip'),)\"",
    "optimizer.groups": "\"((r'head/', {'lr': 1.0}), (r'.*', None))\"",
    "data.mean": "(0.5,)",
    "data.std": "(0.25,)",
    "data.text.buckets": "(16, 32, 64)",
    "generate.stop": "('\\n\\n',)",
}


# What others call it, by the last word of a key that there is not.
ELSEWHERE = {
    "epochs": "train.duration=epochs=3",
    "num_epochs": "train.duration=epochs=3",
    "steps": "train.duration=steps=1000",
    "num_steps": "train.duration=steps=1000",
    "batch_size": "train.batch_size",
    "lr": "optimizer.learning_rate",
    "learning_rate": "optimizer.learning_rate",
    "dataset": "data.name",
}


def find_module(room: str, name: str) -> Any:
    """Imports research.<room>.<name>.

    Raises:
      UserError: there is no such module; the message lists what exists.
    """
    package = importlib.import_module(f"research.{room}")
    # What several of them share lies in a package, which is no choice.
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg)
    if name not in names:
        raise UserError(
            f"there is no '{name}' in research/{room.replace('.', '/')}{nearest(name, names)}: {', '.join(names)}"
        )
    return importlib.import_module(f"research.{room}.{name}")


def find_builder(name: str) -> Any:
    """Imports the module of research/data/builders that `config.data.name` names."""
    try:
        return find_module("data.builders", "tfds" if name.startswith("tfds:") else name)
    except UserError as error:
        raise UserError(f"{error}, or tfds:NAME") from error


def options_of(function: Callable) -> dict[str, Any]:
    """Returns what a config may set of a function or class: its parameters that have a default."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name not in ("parent", "name")
    }


def _options(section: str, name: Any) -> dict[str, Any]:
    """Returns {'model.features': default, ...} of what `name` brings to a section."""
    if not isinstance(name, str):
        raise UserError(f"is {name!r}, but must be of type str")
    return flatten(_own_options(section, name), f"{section}.")


def _options_or_none(section: str, name: Any) -> dict[str, Any]:
    try:
        return _options(section, name)
    except UserError:  # misspelt, and now given another name
        return {}


def _own_options(section: str, name: str) -> dict[str, Any]:
    if section == "model":
        model = getattr(find_module("models", name), "Model", None)
        if model is None:
            raise UserError(f"research/models/{name}.py holds no Model")
        return options_of(model)
    if section == "task":
        return options_of(find_module("tasks", name).build)
    if section == "data":
        builder = find_builder(name)  # of pictures, of texts, or of both
        found = [getattr(builder, kind, None) for kind in ("locate", "locate_text")]
        return {k: v for locate in found if locate for k, v in options_of(locate).items()}
    optim = importlib.import_module("research.engine.optim")
    return optim.optimizer_options(name) if section == "optimizer" else optim.schedule_options(name)


def load(
    file_and_arg: str, overrides: Iterable[tuple[str, str]] = ()
) -> tuple[FrozenConfigDict, list[str]]:
    """Reads a config file, applies overrides and fills in every option.

    Args:
      file_and_arg: 'configs/NAME.py' or 'configs/NAME.py:ARG'.
      overrides: pairs such as ('train.batch_size', '64').

    Returns:
      The resolved config, and every mistake found in it, one line each. The config is usable only if there are none.
    """
    return resolve(_read_file(file_and_arg), overrides)


def resolve(
    config: ConfigDict, overrides: Iterable[tuple[str, str]] = ()
) -> tuple[FrozenConfigDict, list[str]]:
    """As `load`, from a config that is already in memory."""
    given = flatten(config.to_dict())
    texts = dict(overrides)
    errors: list[str] = []
    if texts.get("model.name", given.get("model.name")) == PRETRAINED:
        try:
            given = _with_described(given, texts.get("pretrained.source"))
            texts.pop("model.name", None)
        except UserError as error:
            errors += str(error).splitlines()
    schema = flatten(defaults().to_dict())
    added: dict[str, Any] = {}
    incomplete = []  # sections whose name is unknown: their options cannot be judged
    for section in NAMED:
        key = f"{section}.name"
        old = given.get(key, schema[key])
        name = texts.get(key, old)
        if section == "model" and name == PRETRAINED:  # told above
            incomplete.append(section + ".")
            continue
        if name != old:
            # Another model, say, has other options: those of the one that the file names then mean nothing.
            if old == PRETRAINED:
                given = {k: v for k, v in given.items() if k == key or not k.startswith("model.")}
            for option in _options_or_none(section, old):
                if option not in schema:
                    given.pop(option, None)
        try:
            added |= _options(section, name)
        except UserError as error:
            errors.append(f"config.{key}: {error}")
            incomplete.append(section + ".")
    named = {f"config.{section}name:" for section in incomplete}
    schema |= added

    resolved = dict(schema)
    for key, value in given.items():
        if key not in texts and f"config.{key}:" not in named:
            _accept(key, value, schema, resolved, errors, incomplete)
    for key, text in texts.items():
        if f"config.{key}:" not in named:
            _accept(key, _parse(text, schema.get(key)), schema, resolved, errors, incomplete)
    for key, allowed in RANGES.items():
        wrong = any(e.startswith(f"config.{key}:") for e in errors)
        if key in resolved and not wrong and not allowed.holds(resolved[key]):
            near = nearest(str(resolved[key]), allowed.options)
            errors.append(f"config.{key} is {resolved[key]!r}, but must be {allowed.words}{near}")
    return FrozenConfigDict(_unflatten(resolved)), errors


def _with_described(given: dict[str, Any], source: str | None) -> dict[str, Any]:
    """Returns a flat config with the model that its pretrained source (or another `source`) describes.

    Options that stand beside model.name=pretrained were meant for that model, and stay.

    Raises:
      UserError: there is no source, or it describes no model.
    """
    source = given.get("pretrained.source", "") if source is None else source
    if not source:
        raise UserError(
            "config.pretrained.source: is empty, but config.model.name=pretrained takes the model of its "
            "config.json; set it to hf:FOLDER"
        )
    described = _described(source)
    if given.get("model.name") != PRETRAINED:  # then its options are of another model
        given = {key: v for key, v in given.items() if not key.startswith("model.")}
    if given.get("pretrained.naming"):
        described.pop("pretrained.naming")
    return {**described, **given, **{k: described[k] for k in ALWAYS if k in described}}


def _described(source: str) -> dict[str, Any]:
    """What the folder that a source names says of its model: its name here, its options, whose names it has."""
    configs = importlib.import_module("research.transfer.hf.configs")
    about = configs.about(source)
    options = configs.model_of(source) | {"vocabulary": about.vocab_size}
    return {f"model.{key}": value for key, value in options.items()} | {
        "pretrained.naming": about.naming
    }


def as_trained(config: FrozenConfigDict, workdir: Path) -> FrozenConfigDict:
    """Returns the config of a trained model, complete, without what was needed to train it alone.

    That is its teacher, and a file whose values are in the checkpoint by now. The tokenizer is the one that the run
    keeps.

    Raises:
      UserErrors: the config has mistakes.
    """
    unused = [("distill.teacher", "")]
    if not config.to_dict().get("lora", {}).get("rank"):
        unused.append(("pretrained.source", ""))
    if (workdir / "tokenizer.json").is_file():
        unused += [("tokenizer.name", "file"), ("tokenizer.path", str(workdir))]
    if (
        not config.optimizer.groups
    ):  # else what the adapter gave may be frozen, and in no checkpoint
        unused.append(("lora.adapter", ""))
    plain, mistakes = resolve(config, unused)
    if mistakes:
        raise UserErrors(mistakes)
    return plain


def first_line(error: BaseException) -> str:
    """Returns what an error of someone else's says, cut to the one line that a user is told."""
    return next(iter(str(error).strip().splitlines()), "")


def _read_file(file_and_arg: str) -> ConfigDict:
    path, _, arg = file_and_arg.partition(".py:")
    path = path if not _ else path + ".py"
    if not Path(path).is_file():
        folder = Path(path).parent
        names = [str(p) for p in sorted(folder.glob("*.py"))] if folder.is_dir() else []
        names = [name for name in names if name != "launch.py"]
        if Path(path).is_dir():
            raise UserError(f"--config={path}: is a folder; name a file of it")
        shipped = Path("configs", Path(path).stem + ".py")
        if shipped.is_file():
            raise UserError(f"--config={path}: no such file (did you mean '{shipped}'?)")
        there = f"; there: {', '.join(names)}" if names else ""
        raise UserError(f"--config={path}: no such file{nearest(path, names)}{there}")
    spec = importlib.util.spec_from_file_location("_config", path)
    if not spec or not spec.loader:
        raise UserError(f"--config={path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        takes = bool(inspect.signature(module.get_config).parameters)
        if arg and not takes:
            raise UserError(
                f"--config={file_and_arg}: {path} takes no argument: leave out ':{arg}'"
            )
        config = module.get_config(arg) if arg else module.get_config()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            f"--config={path}: cannot be read: {type(error).__name__}: {first_line(error)}"
        ) from error
    mend = "start from research.config.defaults() and return it, changed"
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={path}: get_config returned {type(config).__name__}; {mend}")
    if missing := [key for key in defaults() if key not in config]:
        raise UserError(f"--config={path}: get_config left out {', '.join(missing)}; {mend}")
    return config


def _accept(key, value, schema, resolved, errors, incomplete) -> None:
    """Puts one value into `resolved`, or a line into `errors`."""
    if any(key.startswith(section) and key not in schema for section in incomplete):
        return
    if key not in schema:
        sections = {k.rsplit(".", 1)[0] for k in schema if "." in k}
        if key in sections:
            first = "name" if f"{key}.name" in schema else _first(schema, key)
            errors.append(
                f"config.{key}: is a section; set one of its keys, such as config.{key}.{first}"
            )
            return
        errors.append(f"config.{key}: unknown key{_nearest_key(key, schema)}")
        return
    default = schema[key]
    value = _frozen(value)
    kinds = {type(element) for element in default} if isinstance(default, tuple) else set()
    kind = kinds.pop() if len(kinds) == 1 else None  # of every element
    if isinstance(default, float):
        value = _as_float(value)
    elif kind is float and isinstance(value, tuple):
        value = tuple(map(_as_float, value))
    if isinstance(default, float) and isinstance(value, float) and not math.isfinite(value):
        errors.append(f"config.{key}: is {value}, which is not a finite number")
    elif default is not None and type(value) is not type(default):
        example = EXAMPLES.get(key, repr(default))
        errors.append(
            f"config.{key}: is {value!r}, but must be of type {type(default).__name__}, as in {example}"
        )
    elif kind and any(type(element) is not kind for element in value):
        errors.append(
            f"config.{key}: is {value!r}, but its elements must be of type {kind.__name__}, as in {default!r}"
        )
    elif isinstance(default, str) and is_duration(default) and not is_duration(value):
        errors.append(
            f"config.{key}: is {value!r}, but must be a duration such as 'steps=1000' (units: {', '.join(UNITS)})"
        )
    else:
        resolved[key] = value


def _frozen(value: Any) -> Any:
    """Lists become tuples, and a dict inside of one a tuple of (key, value): what a frozen config can hold."""
    if isinstance(value, dict):
        return tuple((key, _frozen(value[key])) for key in value)
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _as_float(value: Any) -> Any:
    return float(value) if type(value) is int else value


def _first(schema: dict[str, Any], section: str) -> str:
    return next(k for k in schema if k.startswith(section + ".")).removeprefix(section + ".")


def _nearest_key(key: str, schema: dict[str, Any]) -> str:
    """The nearest key of the same section, else what the section has; the nearest anywhere if there is no section."""
    section, _, last = key.rpartition(".")
    if last in ELSEWHERE and ELSEWHERE[last].partition("=")[0] in schema:
        return f" (did you mean '{ELSEWHERE[last]}'?)"
    siblings = [
        k.removeprefix(section + ".") for k in schema if section and k.startswith(section + ".")
    ]
    if siblings:
        found = nearest(last, siblings)
        return (
            found.replace("'", f"'{section}.", 1) if found else f"; there are {', '.join(siblings)}"
        )
    return nearest(key, schema) or nearest(key, [k for k in schema if k.endswith("." + last)])


def _parse(text: str, default: Any) -> Any:
    """Reads an override; what does not fit the default's type is left for `_accept` to name."""
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        return {"true": True, "false": False, "1": True, "0": False}.get(text.lower(), text)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return (
        (value,) if isinstance(default, tuple) and not isinstance(value, (tuple, list)) else value
    )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {'a.b': value} for {'a': {'b': value}}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree


def to_json(config: FrozenConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> FrozenConfigDict:
    """The inverse of `to_json`. A config holds no lists, so every list was a tuple."""

    def tuples(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(tuples(v) for v in value)
        return {k: tuples(v) for k, v in value.items()} if isinstance(value, dict) else value

    return FrozenConfigDict(tuples(json.loads(text)))


def differences(
    old: FrozenConfigDict, new: FrozenConfigDict, free: tuple[str, ...] = FREE
) -> list[str]:
    """Returns 'key: old -> new' for every key that makes it another experiment: all but the free ones."""
    # A config stored by an older version lacks the newer keys: it ran as their defaults say.
    before = flatten(resolve(old)[0].to_dict()) | flatten(old.to_dict())
    after = flatten(new.to_dict())
    return [
        f"config.{key}: {before.get(key, 'absent')!r} -> {after.get(key, 'absent')!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(free)
    ]
