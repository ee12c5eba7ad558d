"""A tiny ViT on CIFAR-10, by TFDS download, with RandAugment and mixup; meant for a GPU or TPU.

    python launch.py --config=configs/cifar10_vit.py --workdir=runs/cifar10_vit

It has not been run to its end here: the machines at hand have neither the data nor an accelerator.
"""

from research.config import defaults


def get_config():
    config = defaults()
    config.data.name = "tfds:cifar10"
    config.data.validation_fraction = 0.02
    config.data.augment.flip = True
    config.data.augment.crop = 4
    config.data.augment.randaugment = 2
    config.data.augment.mixup = 0.2
    config.task.label_smoothing = 0.1
    config.model.name = "vit"
    config.model.patch_size = 4
    config.train.duration = "epochs=200"
    config.train.batch_size = 256
    config.train.precision = "bfloat16"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup = "epochs=10"
    config.eval.every = "epochs=5"
    return config
