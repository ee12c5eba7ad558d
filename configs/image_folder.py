"""Your own pictures: a folder a class, or a CSV or JSONL file with path and label.

python launch.py --config=configs/image_folder.py --config.data.path=my_pictures/ --workdir=runs/mine
"""

from research.config import defaults


def get_config():
    config = defaults()
    config.data.name = "folder"
    config.data.path = ""  # yours
    config.data.image_size = 64
    config.data.channels = 3
    config.data.augment.flip = True
    config.data.augment.crop = 6
    config.model.name = "resnet"
    config.model.depth = 18
    config.train.duration = "epochs=30"
    config.train.batch_size = 32
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule.name = "cosine"
    config.optimizer.schedule.warmup = "epochs=1"
    config.eval.final = "best"
    return config
