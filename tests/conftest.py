"""What the tests share: four virtual CPU devices, caches of their own, a tiny task, and launch.py in this process."""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]

# Before JAX is first imported. The caches are the suite's own unless a caller (CI) has named one. What XLA compiled
# stays for the next call: two thirds of the suite's time is compilation.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
if "ROOTSTOCK_CACHE" not in os.environ:
    os.environ["ROOTSTOCK_CACHE"] = tempfile.mkdtemp(prefix="rootstock-tests-")
    (ROOT / ".pytest_cache/xla").mkdir(parents=True, exist_ok=True)
    Path(os.environ["ROOTSTOCK_CACHE"], "xla").symlink_to(ROOT / ".pytest_cache/xla")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(os.environ["ROOTSTOCK_CACHE"], "xla"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

sys.path.insert(0, str(ROOT))  # for `import launch`

# A run of 30 steps in about two seconds, with everything on that could break exactness: momentum, EMA, dropout, batch
# norm, augmentation.
SMALL = (
    "--config.parallel.devices=1",
    "--config.data.validation_fraction=0.1",
    "--config.data.augment.shift=1",
    "--config.model.features=(4,8)",
    "--config.model.dense=(16,)",
    "--config.model.dropout=0.1",
    "--config.train.duration=steps=30",
    "--config.train.batch_size=32",
    "--config.train.ema=0.9",
    "--config.eval.every=steps=10",
    "--config.eval.bootstrap=20",
    "--config.checkpoint.every=steps=7",
    "--config.log.every=steps=4",
    "--config.log.tensorboard=false",
)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Flags that make configs/digits_cnn.py a run of two seconds."""
    return (f"--config={ROOT}/configs/digits_cnn.py", *SMALL)


@pytest.fixture(scope="session")
def launch():
    """launch.main in this process: `launch(*flags) -> exit code`."""
    import launch as module

    return lambda *flags: module.main([str(flag) for flag in flags])


@pytest.fixture(scope="session")
def finished(launch, small, tmp_path_factory) -> Path:
    """The workdir of the small run, never stopped. To be read only."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert launch(*small, f"--workdir={workdir}") == 0
    return workdir


@pytest.fixture
def tree_distance():
    """Returns the largest absolute difference between two trees of arrays."""
    import jax

    def distance(a, b) -> float:
        apart = jax.tree.map(lambda x, y: float(np.abs(np.asarray(x) - np.asarray(y)).max()), a, b)
        return max(jax.tree.leaves(apart))

    return distance


def pytest_sessionfinish(session, exitstatus):
    """In CI a parity test that is skipped has lost what it compares with: a red run, not a green one."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    wanted = session.config.option.markexpr == "parity" and os.environ.get("CI") == "true"
    if wanted and reporter and reporter.stats.get("skipped") and exitstatus == 0:
        session.exitstatus = 1
