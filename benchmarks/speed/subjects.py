"""The trainings that are compared: our config of each, the rivals, and the arithmetic that a step needs.

B examples, T tokens, D width, V vocabulary. Products count two operations a multiplication; a gradient needs twice what
the forward pass does. Norms, activations and the optimizer are left out: they are a hundredth.
"""

import random
from pathlib import Path
from typing import Any, NamedTuple


class Rival(NamedTuple):
    """A side of theirs."""

    name: str  # whose figures these are; of several ways with one name the fastest counts
    script: str  # a file of benchmarks/
    how: dict[str, Any]  # what the file reads
    wait: str = ""  # how its threads wait for work; see `benchmarks.turns.Worker`


class Subject(NamedTuple):
    title: str
    config: str
    settings: tuple[str, ...]  # KEY=VALUE; {work} is the folder of `write_texts`
    rivals: tuple[Rival, ...]
    forward: float  # operations of a batch's forward pass
    batch: int
    tokens: int = 0  # of a row
    most: float = 1.0  # ours/theirs of a train step, asked
    aim: float = 0.8


def torch(*ways: dict[str, Any], name: str = "PyTorch") -> tuple[Rival, ...]:
    """PyTorch as it comes, and with what freed memory costs left out, as it is on our side.

    Its threads wait busily, which other programs disturb, or asleep, which takes longer to wake from; compiling takes
    long enough once.
    """
    sides = {name: {}, f"{name}, memory kept": {"kept": True}}
    return tuple(
        Rival(side, "speed/torch_side.py", {**kept, **how}, wait)
        for side, kept in sides.items()
        for how in ways or ({},)
        for wait in (("",) if how.get("compiled") else ("", "PASSIVE"))
    )


LAYOUTS = {}, {"channels_last": True}
DIGITS = "data.name=digits", "data.validation_fraction=0.1", "data.test_fraction=0.3"
PICTURES = (
    *DIGITS,
    *("data.image_size=32", "data.channels=3", "data.augment.flip=False", "data.augment.crop=0"),
    *("train.batch_size=64", "train.precision=float32", "eval.batch_size=64"),
)
SENTENCES = (
    *("data.name=table", "data.path={work}/sentences.jsonl", "data.text.buckets=()"),
    *("data.validation_fraction=0.1", "data.test_fraction=0.1"),
)
TEXTS = (
    *("data.name=text_folder", "data.path={work}/texts"),
    *("data.validation_fraction=0.1", "data.test_fraction=0.1"),
)
PYTHON_LM = "configs/python_lm.py"


def transformer(b: int, t: int, d: int, depth: int, hidden: int, outputs: int, causal: bool) -> int:
    """Operations of a forward pass: four products D x D, two D x hidden, attention's two, and the output's.

    A causal one needs half of attention's. `outputs` is how many numbers come out of a row, times what each is a
    product of.
    """
    block = 8 * t * d * d + 4 * t * d * hidden + 4 * t * t * d // (2 if causal else 1)
    return b * (depth * block + 2 * outputs)


def gpt(b: int, t: int, d: int, depth: int, vocabulary: int = 4096) -> int:
    return transformer(b, t, d, depth, 4 * d, t * d * vocabulary, causal=True)


def convolution(side: int, kernel: int, c: int, d: int) -> int:
    """Operations for a picture; `side` of what comes out."""
    return 2 * side**2 * kernel**2 * c * d


def cnn(b: int) -> int:
    layers = convolution(26, 3, 1, 32) + convolution(11, 3, 32, 64) + convolution(3, 3, 64, 64)
    return b * (layers + 2 * (576 * 64 + 64 * 10))


def resnet18(b: int) -> int:
    total, c = convolution(32, 3, 3, 64), 64
    for stage in range(4):
        side, d = 32 >> stage, 64 << stage
        total += convolution(side, 3, c, d) + 3 * convolution(side, 3, d, d)
        total += convolution(side, 1, c, d) if stage else 0
        c = d
    return b * (total + 2 * 512 * 10)


def recurrent(b: int, t: int, gates: int, d: int = 256) -> int:
    return b * (2 * t * gates * d * (128 + d) + 2 * d * 2)


def vit(b: int) -> int:
    outputs = 64 * (4 * 4 * 3) * 192 + 192 * 10  # the patches' product stands with the head's
    return transformer(b, 65, 192, 12, 768, outputs, causal=False)


def sentences(name: str, cell: str, gates: int) -> Subject:
    return Subject(
        f"{name}, 128 to 256, length 64, batch 64, Adam",
        f"configs/sentiment_rnn.py:{cell}",
        (*SENTENCES, "train.batch_size=64", "eval.batch_size=64"),
        torch(),
        recurrent(64, 64, gates),
        64,
        64,
    )


SUBJECTS = {
    "cnn": Subject(
        "CNN, 28x28x1, batch 128, Adam",
        "configs/fashion_mnist_cnn.py",
        (*DIGITS, "data.image_size=28", "eval.batch_size=128"),
        (
            *torch(*LAYOUTS),
            Rival("Keras on TensorFlow", "speed/keras_side.py", {}),
            Rival("Keras on TensorFlow", "speed/keras_side.py", {"jit": True}),
        ),
        cnn(128),
        128,
        aim=0.7,
    ),
    "resnet": Subject(
        "ResNet-18, 32x32x3, batch 64, SGD with momentum",
        "configs/cifar10_resnet.py",
        (*PICTURES, "data.augment.cutout=0"),
        torch(*LAYOUTS),
        resnet18(64),
        64,
    ),
    "vit": Subject(
        "ViT-tiny, 32x32x3, patch 4, batch 64, AdamW",
        "configs/cifar10_vit.py",
        (*PICTURES, "data.augment.randaugment=0", "data.augment.mixup=0.0"),
        torch(),
        vit(64),
        64,
    ),
    "elman": sentences("Elman RNN", "elman", 1),
    "lstm": sentences("LSTM", "lstm", 4),
    "gpt": Subject(
        "GPT, 6 x 256, 8 heads, length 256, vocabulary 4096, batch 8, AdamW",
        PYTHON_LM,
        (*TEXTS, "eval.batch_size=8"),
        torch({}, {"compiled": True}),
        gpt(8, 256, 256, 6),
        8,
        256,
    ),
    "minilm": Subject(
        "MiniLM fine-tuning, batch 32 x 64, AdamW",
        "configs/sentiment_minilm.py:full",
        (*SENTENCES, "eval.batch_size=32"),
        torch(name="transformers"),
        transformer(32, 64, 384, 6, 1536, 384 * 384 + 384 * 2, causal=False),
        32,
        64,
    ),
}


def write_texts(work: Path) -> None:
    """Writes texts/*.txt for language models and sentences.jsonl to classify, of words that come with Python.

    Twelve long texts, so that most rows hold one document; sentences of 90 words, which fill any row. What is there
    stays: prepared data is found by its files' dates.
    """
    if (work / "sentences.jsonl").exists():
        return
    import json
    from pydoc_data.topics import topics

    (work / "texts").mkdir(parents=True, exist_ok=True)
    pages = [topics[key] for key in sorted(topics)]
    for i in range(12):
        (work / "texts" / f"{i:02d}.txt").write_text("\n\n".join(pages[i::12]))
    words, draw = " ".join(pages).split(), random.Random(0)
    rows = [
        {"text": " ".join(draw.choices(words, k=90)), "label": ("no", "yes")[i % 2]}
        for i in range(2500)
    ]
    whole = work / "sentences.jsonl.new"
    whole.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole.rename(work / "sentences.jsonl")
