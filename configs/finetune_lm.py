"""A causal language model of a Hugging Face folder, trained to answer: the loss counts the answers alone.

python launch.py --config=configs/finetune_lm.py --workdir=runs/chat \\
    --config.pretrained.source=hf:my_llama_dir/ --config.data.path=chat.jsonl

chat.jsonl has a line for each example: {"prompt": "...", "answer": "..."}, or {"messages": [{"role": "user",
"content": "..."}, {"role": "assistant", "content": "..."}]}.
"""

from research.config import defaults


def get_config():
    config = defaults()
    config.task.name = "language_model"
    config.data.name = "table"
    config.data.text.max_length = 512
    config.tokenizer.name = "pretrained"
    config.model.name = "pretrained"
    config.train.duration = "epochs=3"
    config.train.batch_size = 8
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-5
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup = "percent=3"
    config.eval.batch_size = 8
    config.checkpoint.best = "validation/loss"
    config.checkpoint.best_mode = "min"
    return config
