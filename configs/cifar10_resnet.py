"""ResNet-18 on CIFAR-10, by TFDS download; meant for a GPU or TPU.

    python launch.py --config=configs/cifar10_resnet.py --workdir=runs/cifar10

The recipe is the usual one (SGD with momentum, cosine, crop and flip). It has not been run to its end here: the
machines at hand have neither the data nor an accelerator.
"""

from research.config import defaults


def get_config():
    config = defaults()
    config.data.name = "tfds:cifar10"
    config.data.validation_fraction = 0.02
    config.data.augment.flip = True
    config.data.augment.crop = 4
    config.data.augment.cutout = 8
    config.model.name = "resnet"
    config.model.depth = 18
    config.train.duration = "epochs=100"
    config.train.batch_size = 128
    config.train.precision = "bfloat16"
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup = "epochs=5"
    config.eval.every = "epochs=5"
    return config
