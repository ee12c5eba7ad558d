"""The trunk of a CNN trained on MNIST, frozen, and a new head for scikit-learn's digits.

python launch.py --config=configs/mnist5k_cnn.py --workdir=runs/base
python launch.py --config=configs/digits_from_mnist5k.py --config.pretrained.source=orbax:runs/base \\
    --workdir=runs/digits
"""

from research.config import defaults
from research.groups import probe


def get_config():
    config = defaults()
    config.pretrained.source = "orbax:runs/base"
    config.pretrained.rules = ((r"^head/", "skip"),)
    config.data.name = "digits"
    config.data.image_size = 28  # what the trunk was trained on; the pictures have 8x8 pixels
    config.model.name = "cnn"
    config.model.norm = "batch"
    config.model.dropout = 0.2
    config.train.duration = "epochs=20"
    config.train.batch_size = 64
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.groups = probe()
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup = "percent=5"
    config.eval.every = "epochs=5"
    config.checkpoint.every = "epochs=5"
    return config
