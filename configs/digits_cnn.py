"""A small CNN on scikit-learn's 8x8 digits: the first thing to run, no download at all.

python launch.py --config=configs/digits_cnn.py --workdir=runs/digits_cnn

Seeds 0, 1, 2: 98.9, 99.7 and 99.4% of 359 test pictures, 10 to 13 seconds each on two cores (2026-11-26).
"""

from research.config import defaults


def get_config():
    config = defaults()
    config.data.name = "digits"
    config.data.validation_fraction = 0.1
    config.data.augment.shift = 1
    config.data.augment.rotate = 10.0
    config.model.name = "cnn"
    config.model.padding = "SAME"
    config.model.norm = "batch"
    config.train.duration = "epochs=60"
    config.train.batch_size = 64
    config.train.ema = 0.99
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup = "percent=5"
    config.eval.every = "epochs=5"
    config.checkpoint.every = "epochs=10"
    return config
