"""The small CNN that tutorials use (93,322 parameters) on Fashion-MNIST: 5 epochs of Adam.

python launch.py --config=configs/fashion_mnist_cnn.py --workdir=runs/fm
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
