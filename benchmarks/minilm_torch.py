"""transformers' and PEFT's side of benchmarks/minilm.py: fine-tunes MiniLM on given texts, one way a line.

    {"way": "full", "seed": 0, "epochs": 1} -> {"accuracy": 0.842, "seconds": 291.0, "trainable": 22714754, ...}

The usual recipe: AdamW with weight decay 0.01, the rate rising over the first tenth of the steps and falling linearly
to 0, gradients clipped to norm 1, dropout 0.1, batches padded to their longest text, of 64 tokens at most.
"""

import json
import random
import sys
import time
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    get_linear_schedule_with_warmup,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.turns import serve

BATCH, LENGTH = 32, 64
RATES = {"full": 5e-5, "lora": 1e-3, "probe": 1e-3}


def main(folder: str, data: str, threads: int) -> None:
    torch.set_num_threads(threads)
    with open(data) as file:
        splits = json.load(file)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    serve(lambda asked: run(folder, tokenizer, splits, **asked))


def run(folder: str, tokenizer, splits: dict, way: str, seed: int, epochs: int) -> dict:
    """Trains and tests once."""
    torch.manual_seed(seed)
    order = random.Random(seed)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    if way == "lora":
        from peft import LoraConfig, get_peft_model

        targets = ["query", "value"]
        model = get_peft_model(
            model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=targets)
        )
    if way == "probe":
        model.bert.embeddings.requires_grad_(False)
        model.bert.encoder.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATES[way], weight_decay=0.01)
    train = list(splits["train"])
    total = -(-len(train) // BATCH) * epochs
    schedule = get_linear_schedule_with_warmup(optimizer, total // 10, total)
    began, times = time.perf_counter(), []
    model.train()
    for _ in range(epochs):
        order.shuffle(train)
        for start in range(0, len(train), BATCH):
            before = time.perf_counter()
            texts, labels = zip(*train[start : start + BATCH], strict=True)
            batch = encode(tokenizer, texts)
            loss = model(**batch, labels=torch.tensor(labels)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            times.append(time.perf_counter() - before)
    seconds = time.perf_counter() - began
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(splits["test"]), 128):
            texts, labels = zip(*splits["test"][start : start + 128], strict=True)
            guesses = model(**encode(tokenizer, texts)).logits.argmax(-1)
            right += int((guesses == torch.tensor(labels)).sum())
    return {
        "accuracy": right / len(splits["test"]),
        "seconds": seconds,
        "ms_a_step": sorted(times)[len(times) // 2] * 1e3,
        "trainable": sum(p.numel() for p in trained),
        "version": torch.__version__,
    }


def encode(tokenizer, texts):
    return tokenizer(
        list(texts), truncation=True, max_length=LENGTH, padding=True, return_tensors="pt"
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
