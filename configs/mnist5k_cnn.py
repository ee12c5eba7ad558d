"""A CNN on 5,000 MNIST pictures, 4,000 to train on and 1,000 to test, from scratch.

python launch.py --config=configs/mnist5k_cnn.py --workdir=runs/mnist5k

Seeds 0, 1, 2: 98.8, 98.5 and 98.6% of the test pictures, one to two minutes each on two busy cores (2026-11-26). An
SVM with an RBF kernel has 95.9% on such a split.
"""

from research.config import defaults


def get_config():
    config = defaults()
    config.data.name = "mnist_5k"
    config.data.test_fraction = 0.2
    config.data.validation_fraction = 0.05
    config.data.augment.shift = 2
    config.data.augment.rotate = 12.0
    config.model.name = "cnn"
    config.model.norm = "batch"
    config.model.dropout = 0.2
    config.train.duration = "epochs=40"
    config.train.batch_size = 64
    config.train.ema = 0.99
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup = "percent=5"
    config.eval.every = "epochs=4"
    config.checkpoint.every = "epochs=4"
    return config
