"""The best of the shipped configs on Fashion-MNIST.

python launch.py --config=configs/fashion_mnist_best.py --workdir=runs/fm_best

Seed 0: 94.2% test accuracy after 21 minutes of training on two busy cores (2026-11-23).
"""

from research.config import defaults


def get_config():
    config = defaults()
    config.data.name = "fashion_mnist"
    config.data.validation_fraction = 0.02
    config.data.augment.flip = True
    config.data.augment.shift = 1
    config.model.name = "cnn"
    config.model.features = (32, 64, 128)
    config.model.convs = 2
    config.model.pool = (1, 2, 3)
    config.model.padding = "SAME"
    config.model.norm = "batch"
    config.model.dense = (128,)
    config.model.dropout = 0.3
    config.train.duration = "epochs=16"
    config.train.batch_size = 128
    config.train.ema = 0.999
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup = "percent=10"
    config.eval.every = "epochs=2"
    config.checkpoint.every = "epochs=1"
    return config
