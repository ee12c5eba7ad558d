"""A CNN trained on MNIST, fine-tuned on scikit-learn's digits in six ways, with all the labels or with 90.

python launch.py --config=configs/mnist5k_cnn.py --config.train.duration=epochs=6 --workdir=runs/base
python launch.py --config=configs/digits_from_mnist5k.py:probe --workdir=runs/probe_all
python launch.py --config=configs/digits_from_mnist5k.py:full,few --workdir=runs/few

probe      the head alone, on features computed once
layerwise  everything, each layer half as fast as the one above
gradual    the head, then the dense layer, then all
full       everything alike
lora       adapters of rank 8 and the head
scratch    everything, from random values
few        5% of the pictures to train on, 95% to test on

Test accuracy with 'few', a base of 6 epochs, and seed and data.split_seed 0, 1, 2 (2026-11-26, 5 to 10 seconds each):
probe 84.9, 75.4, 74.9; layerwise 95.1, 93.3, 92.7; gradual 94.6, 92.5, 92.9; full 95.7, 94.2, 93.6; lora 93.7, 87.6,
88.7; scratch 89.3, 92.3, 90.0. With all labels, seed 0: 90.5, 99.2, 99.2, 99.7, 99.4 and 99.4.
"""

from research.config import defaults
from research.errors import UserError
from research.groups import layerwise, probe

WAYS = {
    "probe": probe(),
    "layerwise": layerwise(decay=0.5),
    "gradual": (
        (r"head/", dict(lr=1.0)),
        (r"dense1/", dict(lr=0.5, unfreeze_at="20%")),
        (r".*", dict(lr=0.25, unfreeze_at="40%")),
    ),
    "full": (),
    "lora": (),  # config.lora says what is trained
    "scratch": (),
}


def get_config(arg="probe"):
    way, _, few = arg.partition(",")
    if way not in WAYS or few not in ("", "few"):
        raise UserError(
            f"--config=configs/digits_from_mnist5k.py:{arg}: there are {', '.join(WAYS)}, each also with ',few'"
        )
    config = defaults()
    config.data.name = "digits"
    config.data.image_size = 28  # what the trunk was trained on; the pictures have 8x8 pixels
    config.model.name = "cnn"
    config.model.norm = "batch"
    config.model.dropout = 0.2
    config.train.duration = "epochs=20"
    config.train.batch_size = 64
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.groups = WAYS[way]
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup = "percent=5"
    config.eval.every = "epochs=5"
    config.checkpoint.every = "percent=25"
    if few:
        config.data.test_fraction = 0.95
        config.data.validation_fraction = 0.0
        config.train.duration = "steps=200"
        config.train.batch_size = 16
    if way != "scratch":
        config.pretrained.source = "orbax:runs/base"
        config.pretrained.rules = ((r"^head/", "skip"),)
    if way == "lora":
        config.lora.rank = 8
    return config
