"""The contract between the engine, which trains anything, and the tasks, which know what is learned.

B examples in a batch, N in a split, [] scalars. Everything here is a NamedTuple of pure functions or of arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

Array = Any  # np.ndarray on the host, jax.Array on devices
Params = Any  # a pytree of arrays
Batch = dict[
    str, Array
]  # leaves [B, ...]; always 'mask' [B], 0 for padding, and 'id' [B], the example's number


class LossOutput(NamedTuple):
    """What a loss returns: per-example values, so that masks and devices weigh right."""

    losses: Array  # [B]
    weights: Array  # [B] the mask, or the number of target tokens
    model_state: (
        Params  # batch statistics and other variables that are not trained, after this batch
    )
    sums: dict[
        str, Array
    ]  # [] weighted sums over the batch; divided by the total weight once, when reported
    outputs: dict[str, Array] = {}  # [B, ...] what a wrapper may build a further loss on: 'logits'


class Section(NamedTuple):
    """A part of the report. `kind` says how `content` is shown.

    text: str. table: (header, rows). matrix: (names, int array [C, C], a row for each true class).
    images: list of (uint8 array [H, W] or [H, W, C], caption). curve: dict(xlabel, ylabel, series={name: (xs, ys)}).
    facts: a nested dict of what JSON has, shown as tables.
    """

    title: str
    kind: str
    content: Any


class Data(NamedTuple):
    """Where batches come from: pure functions of their number, so nothing needs to be saved to go on."""

    sizes: dict[
        str, int
    ]  # examples in 'train', 'validation', 'test'; a split that is not there is absent
    # (n, rows) -> those rows of the global batch number n
    train_batch: Callable[..., Batch]
    # (split, n, rows), in order, padded and masked at the end. Both take `inputs=False`, which leaves out what the
    # model reads: for a caller who has features of these examples already.
    eval_batch: Callable[..., Batch]
    fingerprints: dict[str, str]  # sha256 of 'data' and of each split
    report: dict[str, Any]  # what data_report.json holds
    repeats: bool = False  # whether a training example is the same in every epoch
    remarks: tuple[str, ...] = ()  # lines that a user is to see before anything is trained


class Inputs(NamedTuple):
    """Examples that a user hands to a trained model."""

    names: list[str]  # [N] what each is called: its path
    batch: Callable[[int, slice], Batch]  # (n, rows) -> those rows of batch n, padded and masked


class Prompt(NamedTuple):
    """What a task that writes text goes on with."""

    name: str  # what it is called: its file and line
    given: Any  # a text, or the messages of a conversation so far
    shown: str  # what stands before the text that is written, for people


class Task(NamedTuple):
    """What is learned."""

    data: Data
    init: Callable[[Array], tuple[Params, Params]]  # key -> params, model_state
    loss: Callable[
        [Params, Params, Batch, dict[str, Array]], LossOutput
    ]  # rngs: stream -> key of this step
    predict: Callable[
        [Params, Params, Batch], dict[str, Array]
    ]  # [B, ...] each, without randomness
    intermediates: Callable[
        [Params, Params, Batch, dict[str, Array]], dict[str, Array]
    ]  # in order of computation
    # What `loss` and `predict` also take as batch["given"], {name: [B, ...]}, in place of computing it; as `predict`.
    features: Callable[[Params, Params, Batch], dict[str, Array]]
    layers: tuple[str, ...]  # patterns of parameter paths, from the input to the output
    # What a file of weights needs beside them: 'inputs' {name: shape of an example}, 'classes', 'mean' and 'std'.
    about: dict[str, Any]
    measure: Callable[
        [dict[str, Array], bool], dict[str, float]
    ]  # predictions of a split, final? -> figures
    describe: Callable[
        [dict[str, Array], str], list[Section]
    ]  # predictions of a split, its name -> report
    read_inputs: Callable[[list[str], str | None], Inputs]  # paths, and a text -> examples
    decode: Callable[
        [dict[str, Array]], list[dict[str, Any]]
    ]  # predictions -> a JSON row for each example
    # Entries of model_state that never change and are in no checkpoint, which names them by hash; `init` gives zeros.
    constants_in: tuple[str, ...] = ()
    constants: Callable[[], Params] = dict  # -> those entries, NumPy leaves; may read files
    # Pattern of the starts of paths -> why parameters with the same rest of a path are computed with as one array. They
    # are frozen together: where one of them is trained, all get a gradient.
    joined: dict[str, str] = {}
    # Files of the run directory that belong to the model, such as its tokenizer.json: name -> content.
    files: dict[str, str] = {}
    # Of a task that writes text: (paths, a text or None) -> prompts; and (params, model_state, what is given of each,
    # options, emit) -> a text for each, where options are config.generate and emit(i, piece) is called with each
    # further piece of text i as it is made.
    read_prompts: Callable[[list[str], str | None], list[Prompt]] | None = None
    generate: (
        Callable[[Params, Params, list[Any], Any, Callable[[int, str], None]], list[str]] | None
    ) = None
