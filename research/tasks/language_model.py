"""Language models: each token foretold from those before it (causal), or hidden ones from all others (masked).

B rows in a batch, T tokens of a row, N rows in a split, V tokens in the vocabulary.
"""

import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.data.text import batches
from research.data.text.store import TextStore
from research.errors import UserError
from research.evaluation import language as metrics
from research.ops.losses import blocked_cross_entropy, foretold, softmax_cross_entropy
from research.task import Batch, Data, Inputs, LossOutput, Params, Prompt, Section, Task
from research.tasks.shared import models, prompts, texts

HARDEST = 15  # rows shown in the report
# Of a batch, at most, before they are made in blocks: 256 MB, of which a gradient needs several.
LOGITS = 2**26
OBJECTIVES = {"causal": "lm", "masked": "mlm"}  # and the model's head


def prepare(config: Any) -> TextStore:
    """Returns the texts.

    Raises:
      UserErrors: they cannot be had.
    """
    return texts.prepare(config, labelled=False)


def build(
    config: Any,
    *,
    axis_name: str | None,
    objective: str = "causal",
    mask_rate: float = 0.15,
    loss_block: int = 0,
) -> Task:
    """Prepares the texts and the tokenizer, and builds the model that the config names.

    The loss is the mean over tokens, whatever rows they are in. Of conversations only the answers count.

    Args:
      config: reads data, tokenizer, model, pretrained.source, train.batch_size, train.precision, eval and seed.
      axis_name: what the devices' axis is called inside a step; None where there is none.
      objective: 'causal' or 'masked' (BERT: 80% of what is hidden is [MASK], 10% another token, 10% itself).
      mask_rate: the share of tokens that are hidden.
      loss_block: of how many tokens there are logits at a time; 0 = of so many that they are `LOGITS` at most. Where
        a batch has more, the output's matrix is multiplied block by block, and again for the gradient.

    Raises:
      UserErrors: the data or the tokenizer cannot be had, or the model does not fit them.
    """
    data, tokenizer = texts.with_tokenizer(config, labelled=False)
    rows = batches.language_model(
        data,
        tokenizer,
        config.data,
        seed=config.seed,
        batch_size=config.train.batch_size,
        eval_batch_size=config.eval.batch_size,
        objective=objective,
        mask_rate=mask_rate,
    )
    length = config.data.text.max_length
    model = texts.build_model(
        config, tokenizer, axis_name, head=OBJECTIVES[objective], outputs=tokenizer.size
    )
    causal = objective == "causal"
    splits = getattr(model.module, "splits", False)
    if loss_block and not splits:
        raise UserError(
            f"config.task.loss_block={loss_block}: model {config.model.name} makes its logits in one piece; set it to 0"
        )

    def block_of(batch_size: int) -> int:
        """How many tokens of each row there are logits of at a time; 0 is all.

        A matter of the whole batch, however it is cut over devices and micro-batches: what an adapter drops depends
        on the block.
        """
        most = loss_block or LOGITS // tokenizer.size
        return max(most // batch_size, 1) if splits and batch_size * length > most else 0

    blocks = {True: block_of(config.train.batch_size), False: block_of(config.eval.batch_size)}

    def apply(params: Params, model_state: Params, batch: Batch, keys, **how) -> Any:
        return model.module.apply(
            {"params": params, **model_state},
            batch["tokens"],
            segments=batch["segments"],
            positions=batch["positions"],
            keys=keys,
            **how,
        )

    def scored(params: Params, model_state: Params, batch: Batch, keys: Any, **how) -> tuple:
        """The loss of each target, whether it was foretold, [B, T] each, the changed state and the outputs."""
        block = blocks[how["train"]]
        if not block:
            logits, changed = made(apply(params, model_state, batch, keys, **how), how)
            losses = softmax_cross_entropy(logits, batch["targets"])
            return losses, foretold(logits, batch["targets"]), changed, {"logits": logits}
        states, changed = made(apply(params, model_state, batch, keys, hidden=True, **how), how)

        def logits_of(states: jax.Array, number: jax.Array) -> jax.Array:
            # An adapter of the output drops what enters it: not the same places in each block.
            drawn = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            variables = {"params": params, **model_state}
            return model.module.apply(
                variables, None, states=states, keys=drawn, train=how["train"]
            )

        given = logits_of, states, batch["targets"]
        return *blocked_cross_entropy(*given, block=block), changed, {}

    def made(found: Any, how: dict[str, Any]) -> tuple[jax.Array, Params]:
        return found if "mutable" in how else (found, {})

    def sums(losses: jax.Array, hits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """[B] each, over the targets of a row that count."""
        weights = batch["weights"] * batch["mask"][:, None]
        return {
            "nll": jnp.sum(losses * weights, -1),
            "tokens": jnp.sum(weights, -1),
            "hits": jnp.sum(hits.astype(jnp.float32) * weights, -1),
        }

    def loss(
        params: Params, model_state: Params, batch: Batch, rngs: dict[str, jax.Array]
    ) -> LossOutput:
        losses, hits, changed, outputs = scored(
            params,
            model_state,
            batch,
            models.example_keys(batch, rngs),
            train=True,
            mutable=list(model_state),
        )
        row = sums(losses, hits, batch)
        return LossOutput(
            row["nll"] / jnp.maximum(row["tokens"], 1.0),
            row["tokens"],
            dict(changed),
            {"accuracy": jnp.sum(row["hits"])},
            outputs,
        )

    def predict(params: Params, model_state: Params, batch: Batch) -> dict[str, jax.Array]:
        losses, hits, *_ = scored(params, model_state, batch, None, train=False)
        return {**sums(losses, hits, batch), "bytes": batch["bytes"], "id": batch["id"]}

    def measure(outputs: dict[str, np.ndarray], final: bool) -> dict[str, float]:
        # Where only part of a text is foretold, its bytes are no measure of it.
        size = outputs["bytes"] if causal and not data.chat else None
        given = outputs["nll"], outputs["tokens"], outputs["hits"], size
        if final:
            return metrics.full(*given, resamples=config.eval.bootstrap, seed=config.seed)
        return metrics.quick(*given)

    def describe(outputs: dict[str, np.ndarray], split: str) -> list[Section]:
        each = outputs["nll"] / np.maximum(outputs["tokens"], 1)
        shown = []
        for i in np.argsort(-each, kind="stable")[:HARDEST].tolist():
            batch = rows.eval_batch(split, i // size, slice(i % size, i % size + 1))
            ids = batch["tokens"][0][batch["segments"][0] > 0]
            shown.append((float(each[i] / math.log(2)), texts.excerpt(tokenizer.decode(ids))))
        return [Section(f"Hardest rows ({split})", "table", (("bits a token", "text"), shown))]

    size = config.eval.batch_size

    def read_inputs(paths: list[str], prompt: str | None) -> Inputs:
        raise UserError("--mode=predict: a masked language model writes no texts")

    def read_prompts(paths: list[str], prompt: str | None) -> list[Prompt]:
        return prompts.read_prompts(paths, prompt, config.data.text.normalise, chat=data.chat)

    def generate(params: Params, model_state: Params, given: list[Any], options: Any, emit):
        from research.tasks.shared import writing

        return writing.write(
            model.module,
            {"params": params, **model_state},
            tokenizer,
            given,
            options,
            emit,
            chat=data.chat,
            context=getattr(model.module, "longest", sys.maxsize),
        )

    return Task(
        data=Data(
            sizes=rows.sizes,
            train_batch=rows.train_batch,
            eval_batch=rows.eval_batch,
            fingerprints=texts.fingerprints(data, tokenizer),
            report={**data.report, "rows": rows.counts},
            repeats=causal,
            remarks=texts.cleaned(data) + _remarks(rows.counts, length),
        ),
        init=model.init,
        loss=loss,
        predict=predict,
        intermediates=models.intermediates(apply),
        features=lambda params, model_state, batch: {},
        layers=model.layers,
        about={
            "inputs": {"tokens": [length]},
            "head": OBJECTIVES[objective],
            "vocab_size": tokenizer.size,
            **({"ends": _ends(tokenizer, data.chat)} if causal else {}),
        },
        measure=measure,
        describe=describe,
        read_inputs=read_inputs,
        decode=lambda outputs: [],
        joined=model.joined,
        files=tokenizer.to_files(),
        read_prompts=read_prompts if causal else None,
        generate=generate if causal else None,
    )


def _ends(tokenizer: Any, chat: bool) -> list[int]:
    """The tokens that end a text; none where a template refuses what they are found by."""
    from research.tasks.shared import writing

    try:
        return list(writing.ends(tokenizer, chat))
    except UserError:
        return []


def _remarks(counts: dict[str, dict[str, int | float]], length: int) -> tuple[str, ...]:
    """Says which conversations are not used."""
    found = {
        split: (int(n.get("left_out", 0)), int(n["documents"] + n.get("left_out", 0)))
        for split, n in counts.items()
    }
    rest = (
        f"which are longer than config.data.text.max_length={length} tokens, and none is cut; "
        "raise it to use them"
    )
    return texts.told("conversations left out", found, rest)
