"""Small models of every family, their shapes, and trees of random arrays for them."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

CLASSES = 5
SMALL = {
    "cnn": ((12, 12, 3), {"norm": "batch", "features": (4, 8), "dense": (6,), "padding": "SAME"}),
    "efficientnet": ((32, 32, 3), {"variant": 0}),
    "mlp": ((4, 4, 1), {"widths": (8, 6)}),
    "resnet": ((32, 32, 3), {"depth": 18, "width": 4, "stem": "imagenet"}),
    "vit": ((16, 16, 3), {"patch_size": 4, "width": 12, "depth": 2, "heads": 2}),
}


class Model:
    """How `load` and `dump` are called for a model, and its shapes."""

    def __init__(self, name, options, shape=None):
        given, small = SMALL[name]
        self.name, self.options = name, small | options
        module = importlib.import_module(f"research.models.{name}").Model(
            num_classes=CLASSES, dtype=jnp.float32, axis_name=None, **self.options
        )
        x = jnp.zeros((1, *(shape or given)))
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
        self.params = shapes.pop("params")
        self.model_state = shapes

    @property
    def about(self):
        return {"model": self.name, "options": self.options}

    def trees(self, seed=0):
        """Random (params, model_state)."""
        generator = np.random.default_rng(seed)
        return jax.tree.map(
            lambda leaf: generator.standard_normal(leaf.shape, np.float32),
            (self.params, self.model_state),
        )

    def load(self, arrays, **how):
        from research.transfer.load import load

        trees = {"params": self.params, "model_state": self.model_state}
        return load(arrays, **self.about, **trees, **how)

    def dump(self, trees, naming):
        from research.transfer.load import dump

        return dump(*trees, **self.about, naming=naming)

    def refuses(self, arrays, **how):
        """The lines with which `load` refuses."""
        from research.errors import UserError

        with pytest.raises(UserError) as caught:
            self.load(arrays, **how)
        return str(caught.value).split("\n")


@pytest.fixture(scope="session")
def build():
    """build('vit', depth=3) -> Model; equal calls share one."""
    made = {}

    def build(name, shape=None, **options):
        key = (name, shape, tuple(sorted(options.items())))
        if key not in made:
            made[key] = Model(name, options, shape)
        return made[key]

    return build
