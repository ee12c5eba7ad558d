"""The small CNN that tutorials use (93,322 parameters) on Fashion-MNIST: 5 epochs of Adam.

python launch.py --config=configs/fashion_mnist_cnn.py --workdir=runs/fm

Seeds 0, 1, 2: 90.0, 90.0 and 89.8% test accuracy, 36 s each on two idle cores (2026-11-26), validation
on 5% of the training pictures. The same network in Keras had 88.8, 89.5 and 89.0%.
"""

from research.config import defaults


def get_config():
    config = defaults()
    config.data.name = "fashion_mnist"
    config.data.validation_fraction = 0.05
    config.model.name = "cnn"
    config.train.duration = "epochs=5"
    config.train.batch_size = 128
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    return config
