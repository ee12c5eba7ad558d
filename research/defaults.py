"""Every key that a config may set, its default and what values it takes; options of what is named come on top."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict


def defaults() -> ConfigDict:
    """Returns a new config in which every key has its default."""
    config = ConfigDict()
    config.seed = 0  # every random number of the run is derived from it
    config.resume = ""  # another run's workdir whose newest checkpoint this run starts from

    config.pretrained = ConfigDict(
        {
            "source": "",  # orbax:RUN, safetensors:FILE, torch:FILE, keras:FILE, hf:DIR or package:NAME; '' is scratch
            "checkpoint": "final",  # of a run: best, last, or final: the one that its eval.final names
            "params": "evaluated",  # of a run: evaluated (the EMA, if it has one) or trained
            "naming": "",  # whose names the arrays have, such as timm; '' recognises them
            "rules": (),  # ((pattern, "skip"), (pattern, "rename", new), ...); docs/grafting.md lists them
        }
    )
    config.lora = ConfigDict(
        {
            "rank": 0,  # of the adapters; 0 is none
            "alpha": 16.0,  # adapters are scaled by alpha / rank, or alpha / sqrt(rank) as rsLoRA
            "rslora": False,
            "dora": False,  # magnitude and direction apart (Liu et al. 2024)
            "dropout": 0.0,  # of what enters an adapter
            "layers": (
                r".*",
            ),  # patterns of the paths of the Dense, Conv and Embed layers that get one
            "train": (
                r"^head/",
            ),  # patterns of parameters that are trained as they are, beside the adapters
            "adapter": "",  # a folder in PEFT's format whose adapters this run starts from
        }
    )
    config.distill = ConfigDict(
        {
            "teacher": "",  # the workdir of a run whose predictions are learned from; '' is none
            "temperature": 2.0,  # by which both sides' logits are divided
            "weight": 0.5,  # of the teacher's part of the loss; the labels have the rest
        }
    )

    config.tokenizer = ConfigDict(
        {
            "name": "bpe",  # byte, char, bpe, wordpiece or unigram, trained on the training split; file; pretrained
            "size": 4096,  # tokens of a bpe, wordpiece or unigram that is trained, special ones included
            "path": "",  # of name=file: a tokenizer.json or the folder that holds one
            "lowercase": False,  # of a tokenizer that is trained
        }
    )

    config.task = ConfigDict(
        {"name": "classification"}
    )  # a module of research/tasks, and its options
    # A module of research/models, and its options; or 'pretrained': those of config.pretrained.source's config.json.
    config.model = ConfigDict({"name": "cnn"})

    config.data = data = ConfigDict()
    data.name = "digits"  # a module of research/data/builders, and its options; or tfds:NAME
    data.path = ""  # where the source's own files are, if it reads files
    data.cache_dir = (
        ""  # where prepared data is kept; '' is $ROOTSTOCK_CACHE/data or ~/.cache/rootstock/data
    )
    data.split_seed = 0  # the splits depend on it and on nothing else
    data.validation_fraction = 0.1  # of what is not test; 0 makes no validation split
    data.test_fraction = 0.2  # used only where the source has no test split of its own
    data.image_size = 0  # height and width; 0 is the source's own (64 for a folder of pictures)
    data.channels = 0  # 1 grey, 3 colour; 0 is the source's own
    data.mean = ()  # of each channel, pixels from 0 to 1; () is the training split's own
    data.std = ()  # the same
    data.loader = "memory"  # memory: gathered from memory-mapped arrays; grain: record by record, or texts by workers
    data.workers = 0  # processes of the grain loader; the batches do not depend on it
    data.prefetch = 4  # batches made ahead of the step that needs them
    data.clean = ConfigDict(
        {  # what is done with each kind of finding: error, drop or keep
            "unreadable": "error",
            "shape": "error",
            "nan": "error",
            "blank": "drop",
            "duplicate": "keep",  # the same pixels twice within one split
            "near_duplicate": "keep",  # nearly the same, by perceptual hash and pixel distance
            "cross_split": "drop",  # a duplicate in two splits; dropped from train first, never from test
            "label_conflict": "keep",  # the same content with two labels
            "long": "keep",  # a text of more than data.text.longest characters
        }
    )
    data.text = ConfigDict(
        {
            "max_length": 128,  # tokens of a text to classify, which is cut there, or of a row of a language model
            "buckets": (),  # lengths that batches to classify are padded to; () pads all to max_length
            "normalise": "NFC",  # the Unicode form: NFC, NFKC, or '' for none
            "longest": 1_000_000,  # characters; see data.clean.long
        }
    )
    data.augment = ConfigDict(
        {
            "flip": False,  # left to right, one time in two
            "shift": 0,  # pixels, up to, in each direction; the edge is filled with zeros
            "crop": 0,  # pixels of zero padding, from which a picture of the old size is cut
            "rotate": 0.0,  # degrees, up to, in each direction
            "cutout": 0,  # pixels, the side of a square set to zero
            "randaugment": 0,  # operations a picture
            "magnitude": 9.0,  # of those operations, 0 to 30
            "mixup": 0.0,  # alpha of the Beta distribution; 0 is off
            "cutmix": 0.0,  # the same
        }
    )

    config.train = train = ConfigDict()
    train.duration = "epochs=5"  # steps=, epochs=, examples= or minutes=
    train.batch_size = 128  # examples a step, over all devices
    train.micro_batches = 1  # parts a batch is cut into, whose gradients are added
    train.precision = "float32"  # of the computation: float32 or bfloat16; parameters stay float32
    train.frozen_batch_norm = (
        "running"  # what a frozen batch norm divides by: its running statistics or the batch's
    )
    train.feature_cache = (
        4.0  # GB that features of a frozen trunk may take on disk; 0 computes them at each step
    )
    train.ema = 0.0  # decay of the moving average of parameters, which is then evaluated; 0 is off

    config.optimizer = optimizer = ConfigDict(
        {"name": "adam"}
    )  # a function of optax, and its arguments
    optimizer.learning_rate = 1e-3  # the peak of the schedule
    optimizer.weight_decay = 0.0
    optimizer.decay_exclude = (
        r"(^|/)bias$",
        r"(^|/)scale$",
    )  # parameter paths that are not decayed
    optimizer.clip_norm = 0.0  # largest global norm of the gradient; 0 is off
    # ((pattern, dict(lr=1.0, layerwise=1.0, unfreeze_at="steps=0") or None: frozen), ...): the first match decides;
    # () trains everything. See research/groups.py.
    optimizer.groups = ()
    optimizer.regroup = (
        False  # go on from a checkpoint that was made with other groups; their state starts anew
    )
    optimizer.schedule = ConfigDict({"name": "constant", "warmup": "steps=0"})

    config.generate = ConfigDict(
        {  # how --mode=predict goes on with a prompt
            "max_tokens": 128,  # tokens made, at most
            "temperature": 1.0,  # by which logits are divided; 0 always takes the most likely token
            "top_k": 0,  # so many most likely tokens are drawn from; 0 is all
            "top_p": 1.0,  # or so many as have this share of the probability (nucleus sampling)
            "min_p": 0.0,  # or those with this share of the most likely one's probability
            "repetition_penalty": 1.0,  # by which logits of tokens that occurred are divided, if positive
            "stop": (),  # texts that end it
            "seed": 0,
        }
    )

    config.eval = ConfigDict()
    config.eval.every = "epochs=1"
    config.eval.batch_size = 512  # a power of two, which divides over most numbers of devices
    config.eval.bootstrap = 1000  # resamples of the 95% intervals of the final evaluation
    config.eval.final = "last"  # which checkpoint the final figures are of: last or best

    config.checkpoint = ConfigDict()
    config.checkpoint.every = "epochs=1"
    config.checkpoint.keep = 2  # newest checkpoints kept, beside the best
    config.checkpoint.best = "validation/accuracy"  # the figure that says which is best
    config.checkpoint.best_mode = "max"  # max or min

    config.log = ConfigDict()
    config.log.every = "steps=50"
    config.log.tensorboard = True

    config.parallel = ConfigDict()
    config.parallel.kind = "mesh"  # mesh: jit with NamedSharding; pmap
    config.parallel.devices = 0  # how many; 0 is all
    config.parallel.cpu_devices = (
        0  # virtual CPU devices to make, for trying layouts on one machine
    )
    return config


class Range(NamedTuple):
    """A test of a value, and the words for what passes it."""

    holds: Callable[[Any], bool]
    words: str
    options: tuple[str, ...] = ()  # where they can be listed


def one_of(*values: str) -> Range:
    return Range(lambda value: value in values, f"one of {', '.join(values)}", values)


def at_least(least: float) -> Range:
    return Range(lambda value: value >= least, f"{least} or more")


def numbers(above: float, words: str) -> Range:
    def holds(values: tuple[Any, ...]) -> bool:
        return all(type(v) in (int, float) and above < v < math.inf for v in values)

    return Range(holds, words)


_fraction = Range(lambda value: 0 <= value < 1, "0 or more and less than 1")
RANGES: dict[str, Range] = {
    # The seed keys Philox and JAX's 32-bit key data alike.
    "seed": Range(lambda value: 0 <= value < 2**32, "from 0 to 4294967295"),
    "data.split_seed": at_least(0),
    "data.validation_fraction": _fraction,
    "data.test_fraction": Range(lambda value: 0 < value < 1, "between 0 and 1"),
    "data.image_size": at_least(0),
    "data.channels": Range(lambda value: value in (0, 1, 3), "0, 1 or 3"),
    "data.mean": numbers(-math.inf, "numbers, one a channel"),
    "data.std": numbers(0, "numbers above 0, one a channel"),
    "data.loader": one_of("memory", "grain"),
    "data.workers": at_least(0),
    "data.prefetch": at_least(1),
    **{f"data.clean.{key}": one_of("error", "drop") for key in ("unreadable", "shape", "nan")},
    **{
        f"data.clean.{key}": one_of("error", "drop", "keep")
        for key in (
            "blank",
            "duplicate",
            "near_duplicate",
            "cross_split",
            "label_conflict",
            "long",
        )
    },
    "data.text.max_length": at_least(2),
    "data.text.buckets": Range(
        lambda v: all(type(x) is int and x > 1 for x in v) and list(v) == sorted(set(v)),
        "ascending integers above 1",
    ),
    "data.text.normalise": one_of("", "NFC", "NFKC"),
    "data.text.longest": at_least(1),
    "tokenizer.name": one_of("byte", "char", "bpe", "wordpiece", "unigram", "file", "pretrained"),
    "tokenizer.size": at_least(1),
    "generate.max_tokens": at_least(1),
    "generate.temperature": at_least(0),
    "generate.top_k": at_least(0),
    "generate.top_p": Range(lambda value: 0 < value <= 1, "more than 0, up to 1"),
    "generate.min_p": Range(lambda value: 0 <= value <= 1, "from 0 to 1"),
    "generate.repetition_penalty": Range(lambda value: value > 0, "more than 0"),
    "generate.seed": Range(lambda value: 0 <= value < 2**32, "from 0 to 4294967295"),
    **{
        f"data.augment.{key}": at_least(0)
        for key in ("shift", "crop", "rotate", "cutout", "randaugment", "mixup", "cutmix")
    },
    "data.augment.magnitude": Range(lambda value: 0 <= value <= 30, "from 0 to 30"),
    "train.batch_size": at_least(1),
    "train.micro_batches": at_least(1),
    "train.precision": one_of("float32", "bfloat16"),
    "train.ema": _fraction,
    "task.label_smoothing": _fraction,
    "task.top_k": at_least(1),
    "task.objective": one_of("causal", "masked"),
    "task.mask_rate": Range(lambda value: 0 < value < 1, "between 0 and 1"),
    "task.loss_block": at_least(0),
    "optimizer.learning_rate": at_least(0),
    "optimizer.weight_decay": at_least(0),
    "optimizer.clip_norm": at_least(0),
    "pretrained.checkpoint": one_of("final", "best", "last"),
    "pretrained.params": one_of("evaluated", "trained"),
    "lora.rank": at_least(0),
    "lora.alpha": Range(lambda value: value > 0, "more than 0"),
    "lora.dropout": _fraction,
    "distill.temperature": Range(lambda value: value > 0, "more than 0"),
    "distill.weight": Range(lambda value: 0 <= value <= 1, "from 0 to 1"),
    "train.frozen_batch_norm": one_of("running", "batch"),
    "train.feature_cache": at_least(0),
    "eval.batch_size": at_least(1),
    "eval.bootstrap": at_least(0),
    "eval.final": one_of("last", "best"),
    "checkpoint.keep": at_least(1),
    "checkpoint.best_mode": one_of("max", "min"),
    "parallel.kind": one_of("mesh", "pmap"),
    "parallel.devices": at_least(0),
    "parallel.cpu_devices": at_least(0),
}
