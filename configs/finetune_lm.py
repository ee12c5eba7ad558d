"""A causal language model of a Hugging Face folder, trained to answer: the loss counts the answers alone.

python launch.py --config=configs/finetune_lm.py --workdir=runs/chat \\
    --config.pretrained.source=hf:my_llama_dir/ --config.data.path=chat.jsonl
python launch.py --workdir=runs/chat --mode=predict --prompt='How many legs has an ant?'
python launch.py --workdir=runs/chat --mode=export --format=hf --output=out/

chat.jsonl has a line for each example: {"prompt": "...", "answer": "..."}, or {"messages": [{"role": "user",
"content": "..."}, {"role": "assistant", "content": "..."}, ...]} of any number of turns, a system's first if you like.

What it costs is the model's: a step takes about 6 FLOPs a parameter and token, and AdamW keeps two numbers a
parameter that is trained.

configs/finetune_lm.py:lora trains adapters of rank 16 on all kernels of the blocks and nothing else; --format=peft
writes them.
"""

from research.config import defaults
from research.errors import UserError

WAYS = ("full", "lora")


def get_config(way: str = "full"):
    if way not in WAYS:
        raise UserError(f"--config=configs/finetune_lm.py:{way}: there are {', '.join(WAYS)}")
    config = defaults()
    config.task.name = "language_model"
    config.data.name = "table"
    config.data.text.max_length = 512
    config.tokenizer.name = "pretrained"
    config.model.name = "pretrained"
    config.model.remat = (
        "dots"  # rows are long: what attention keeps for its gradient grows with their square
    )
    config.train.duration = "epochs=3"
    config.train.batch_size = 8
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-5
    config.optimizer.clip_norm = 1.0
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup = "percent=3"
    if way == "lora":
        config.lora.rank = 16
        config.lora.alpha = 32.0
        config.lora.dropout = 0.05
        config.lora.layers = (r"block_\d+/(attention|mlp)/",)
        config.lora.train = ()
        config.optimizer.learning_rate = 2e-4
    config.generate.max_tokens = 256
    config.generate.temperature = 0.0
    config.eval.batch_size = 8
    config.checkpoint.best = "validation/loss"
    config.checkpoint.best_mode = "min"
    return config
