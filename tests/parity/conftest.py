"""What the comparisons with other frameworks share."""

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")


@pytest.fixture(scope="session", autouse=True)
def torchvision_imports():
    """Lets torchvision be imported beside a torch build that it was not made for, and with it timm and transformers.

    Its compiled operators can't be loaded then (CUDA's wheel beside a CPU torch), and its import fails where it
    describes two of them. None of its ResNets uses one: it is enough that they are declared.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    try:
        torch.ops.load_library(str(Path(spec.origin).parent / "_C.so"))
    except OSError:
        declared = torch.library.Library("torchvision", "DEF")  # alive as long as the tests run
        for name in ("nms", "qnms"):
            declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        yield
    else:
        yield
