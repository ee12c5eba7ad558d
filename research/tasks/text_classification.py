"""Classification of texts: softmax cross-entropy over C classes.

B examples in a batch, T tokens of a text, N in a split, C classes.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from research.data.text import batches
from research.data.text.store import TextStore
from research.task import Batch, Data, Inputs, Params, Section, Task
from research.tasks.shared import classifier, prompts, texts

WORST = 30  # mistakes shown in the report


def prepare(config: Any) -> TextStore:
    """Returns the texts.

    Raises:
      UserErrors: they cannot be had.
    """
    return texts.prepare(config, labelled=True)


def build(
    config: Any, *, axis_name: str | None, label_smoothing: float = 0.0, top_k: int = 5
) -> Task:
    """Prepares the texts and the tokenizer, and builds the model that the config names.

    Args:
      config: reads data, tokenizer, model, pretrained.source, train.batch_size, train.precision, eval and seed.
      axis_name: what the devices' axis is called inside a step; None where there is none.
      label_smoothing: the share of a label's weight that is spread over all classes.
      top_k: also measured is how often the label is among so many best guesses.

    Raises:
      UserErrors: the data or the tokenizer cannot be had, or the model does not fit them.
    """
    data, tokenizer = texts.with_tokenizer(config, labelled=True)
    made = batches.classification(
        data,
        tokenizer,
        config.data,
        seed=config.seed,
        batch_size=config.train.batch_size,
        eval_batch_size=config.eval.batch_size,
    )
    model = texts.build_model(
        config, tokenizer, axis_name, head="classify", outputs=len(data.class_names)
    )
    length = config.data.text.max_length

    def apply(params: Params, model_state: Params, batch: Batch, keys, **how) -> Any:
        variables = {"params": params, **model_state, "given": batch.get("given", {})}
        tokens = batch.get("tokens")  # left out where features are given
        if tokens is None:
            tokens = jnp.zeros((len(batch["label"]), length), jnp.int32)
        return model.module.apply(
            variables, tokens, segments=batch.get("segments"), keys=keys, **how
        )

    def worst(outputs: dict[str, np.ndarray]) -> Section:
        names, guesses, rows = data.class_names, outputs["logits"].argmax(-1), []
        for i in classifier.worst_mistakes(outputs, WORST):
            number = int(outputs["id"][i])
            rows.append(
                (
                    names[outputs["label"][i]],
                    names[guesses[i]],
                    float(outputs["loss"][i]),
                    texts.excerpt(data.texts[number]),
                )
            )
        return Section("", "table", (("class", "taken for", "loss", "text"), rows))

    def read_inputs(paths: list[str], prompt: str | None) -> Inputs:
        names, given = prompts.read_texts(paths, prompt, config.data.text.normalise)
        return batches.inputs(given, names, tokenizer, config.data, config.eval.batch_size)

    return classifier.task(
        config,
        data=Data(
            sizes={split: len(indices) for split, indices in data.splits.items()},
            train_batch=made.train_batch,
            eval_batch=made.eval_batch,
            fingerprints=texts.fingerprints(data, tokenizer),
            report={**data.report, "rows": made.counts},
            repeats=True,
            remarks=texts.cleaned(data)
            + texts.told(
                "texts cut",
                {split: (n["cut"], n["documents"]) for split, n in made.counts.items()},
                f"which are longer than config.data.text.max_length={length} tokens; raise it to use their ends",
            ),
        ),
        class_names=data.class_names,
        model=model,
        apply=apply,
        worst=worst,
        read_inputs=read_inputs,
        about={
            "inputs": {"tokens": [length]},
            "classes": list(data.class_names),
            "head": "classify",
            "vocab_size": tokenizer.size,
        },
        label_smoothing=label_smoothing,
        top_k=top_k,
        # What has an axis of tokens differs in length from batch to batch.
        kept=lambda name: name == "pooled" or not config.data.text.buckets,
        files=tokenizer.to_files(),
    )
