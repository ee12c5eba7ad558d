"""Checkpoints: whole or not there, made in the background, and checked when read. The only module that touches Orbax.

A checkpoint holds the train state and `meta`, a JSON value with whatever else the next step needs. Orbax writes to a
temporary folder and renames it, so a kill leaves the older ones whole; it doesn't notice damage inside array files, so
`meta` also carries a digest of every array, and a checkpoint that fails it is set aside for the one before.
"""

import errno
import functools
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from research.engine.state import TrainState, named_leaves
from research.errors import UserError


class Mismatch(UserError):
    """A whole checkpoint, but not of this state."""


class Restored(NamedTuple):
    step: int
    state: TrainState  # NumPy leaves
    meta: dict[str, Any]


class _Preserve(preservation_policy.PreservationPolicy):
    """The newest `keep` and the best. Orbax's own `best_fn` with `max_to_keep` would delete the newest."""

    def __init__(self, keep: int):
        self.keep = keep
        self.best: int | None = None

    def should_preserve(self, checkpoints, *, context):
        newest = [c.step for c in checkpoints][-self.keep :]
        return [c.step in newest or c.step == self.best for c in checkpoints]


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, workdir: Path, *, keep: int = 2, read_only: bool = False):
        for name in ("absl", "asyncio"):  # what goes wrong is raised too, and is told in one line
            logging.getLogger(name).setLevel(logging.CRITICAL)
        _drop_stray_callbacks()
        self.folder = workdir.absolute() / "checkpoints"
        self._policy = _Preserve(keep)
        if read_only and not self.folder.is_dir():
            raise UserError(
                f"{workdir}: holds no checkpoint; train first: python launch.py --config=... --workdir={workdir}"
            )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                preservation_policy=self._policy,
                enable_async_checkpointing=True,
            ),
            item_names=("state", "meta"),
        )
        self._saved: int | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._write: Future[None] | None = None

    def save(self, step: int, state: TrainState, meta: dict[str, Any], *, best: int | None) -> None:
        """Starts to save a state (NumPy or replicated arrays) and returns; the state may be donated at once.

        Raises:
          UserError: the disk is full, now or at the save before.
        """
        if step == self._saved:
            return
        self._finish_write()
        host = jax.tree.map(np.asarray, _tree(state))
        self._write = self._thread.submit(self._save, step, host, meta, best)
        self._saved = step

    def _save(
        self, step: int, host: dict[str, Any], meta: dict[str, Any], best: int | None
    ) -> None:
        """Runs in a thread: what Orbax does before it goes on in its own background takes as long as a step."""
        self._policy.best = best
        whole = {**meta, "digests": _digests(host)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(host),
            meta=ocp.args.JsonSave(whole | {"sha256": _json_digest(whole)}),
        )
        self._manager.save(step, args=items, force=True)

    def _finish_write(self) -> None:
        if self._write is not None:
            write, self._write = self._write, None
            self._guard(write.result)

    def wait(self) -> None:
        """Returns when the last save is on disk."""
        self._finish_write()
        self._guard(self._manager.wait_until_finished)

    def close(self) -> None:
        try:
            self._finish_write()
        finally:
            self._thread.shutdown()
            self._guard(self._manager.close)

    def restore(
        self,
        like: Callable[[int], TrainState],
        *,
        step: int | None = None,
        report: Callable[[str], None] = print,
    ) -> Restored | None:
        """Returns the newest whole checkpoint, or that of `step`; None if there is none.

        A damaged one is reported and set aside in 'damaged/', and the one before is tried.

        Args:
          like: step -> a state (or the shapes of one) whose structure, shapes and dtypes the checkpoint must have.

        Raises:
          Mismatch: a whole checkpoint has others.
        """
        steps = [step] if step is not None else sorted(self._manager.all_steps(), reverse=True)
        for candidate in steps:
            try:
                return self._read(candidate, like(candidate))
            except Mismatch:  # not damaged: nothing is set aside
                raise
            except Exception as error:  # Orbax and TensorStore raise many kinds
                what = f"checkpoint {candidate} in {self.folder} is damaged ({_first_line(error)})"
                report(f"{what}; {self._set_aside(candidate)}")
        return None

    def variables(self, *, best: bool = False) -> tuple[int, dict[str, Any]]:
        """Returns the step and {'params', 'model_state', 'ema'} of the newest checkpoint, or of the best.

        Raises:
          UserError: there is none that is whole.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if best and (found := self.newest_meta().get("best")):
            steps = [found["step"]]
        damage = ""
        for step in steps:
            try:
                return step, self._read_variables(step)
            except Exception as error:  # Orbax and TensorStore raise many kinds
                damage = damage or f": step {step} is damaged ({_first_line(error)})"
        raise UserError(f"{self.folder}: holds no whole checkpoint{damage}")

    def _read_variables(self, step: int) -> dict[str, Any]:
        stored = self.read_meta(step)["digests"]
        wanted: dict[str, Any] = {}
        for path, digest in stored.items():
            *parents, name = path.split("/")
            if path.startswith(("params/", "model_state/", "ema/")):
                node = wanted
                for parent in parents:
                    node = node.setdefault(parent, {})
                node[name] = _empty(digest)
        restore = ocp.args.PyTreeRestore(
            wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
        )
        with _reader(self.folder) as reader:
            found = reader.restore(step, args=ocp.args.Composite(state=restore))["state"]
        for path, digest in _digests(found).items():
            if stored[path] != digest:
                raise ValueError(f"the digest of {path} is wrong")
        return found

    def damage(self, step: int) -> str | None:
        """Returns what is wrong with a checkpoint, all of whose arrays are read; None if it is whole."""
        if not (self.folder / str(step)).is_dir():
            return "is missing"
        try:
            stored = self.read_meta(step)["digests"]
            with _reader(self.folder) as reader:
                found = reader.restore(
                    step, args=ocp.args.Composite(state=ocp.args.PyTreeRestore())
                )
            # Without a state to compare with, tuples have become lists, so paths may be others.
            if sorted(_digests(found["state"]).values()) != sorted(stored.values()):
                raise ValueError("the digest of an array is wrong")
        except Exception as error:  # Orbax and TensorStore raise many kinds
            return f"is damaged ({_first_line(error)})"
        return None

    def set_aside_from(self, step: int) -> list[str]:
        """Sets the checkpoint of `step` aside and all after it, so that a run goes on before it; says what was done."""
        steps = sorted(s for s in self._manager.all_steps() if s >= step)
        return [f"checkpoint {s} will be made again; {self._set_aside(s)}" for s in steps]

    def newest(self) -> int | None:
        """Returns the step of the newest checkpoint, whole or not; None if there is none."""
        return max(self._manager.all_steps(), default=None)

    def newest_meta(self) -> dict[str, Any]:
        """Returns the meta of the newest checkpoint that can be read, {} if there is none."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self.read_meta(step)
            except Exception:  # damaged: `restore` reports it
                continue
        return {}

    def _read(self, step: int, like: TrainState) -> Restored:
        meta = self.read_meta(step)
        stored = meta.pop("digests")
        wanted = {path: _kind(leaf) for path, leaf in named_leaves(_tree(like)).items()}
        there = {path: digest.split(":")[0] for path, digest in stored.items()}
        for path in sorted(wanted.keys() | there.keys()):
            if wanted.get(path) != there.get(path):
                raise Mismatch(
                    f"the checkpoint of step {step:,} in {self.folder} does not fit: {path} is "
                    f"{there.get(path, 'absent')} there and {wanted.get(path, 'absent')} here; the model, the "
                    "optimizer or the classes are others"
                )
        empty = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), _tree(like))
        found = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(empty))
        )
        actual = _digests(found["state"])
        if wrong := sorted(path for path in stored if stored[path] != actual[path]):
            raise ValueError(f"the digest of {wrong[0]} is wrong")
        return Restored(step, TrainState(**found["state"]), meta)

    def read_meta(self, step: int) -> dict[str, Any]:
        """Returns the meta of a checkpoint, checked; raises whatever a damaged one gives rise to."""
        found = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        meta = dict(found["meta"])
        if meta.pop("sha256") != _json_digest(meta):
            raise ValueError("the digest of its meta is wrong")
        return meta

    def _set_aside(self, step: int) -> str:
        source = self.folder / str(step)
        if self._manager._options.read_only or not source.exists():
            return f"it is passed over; this makes it again: python launch.py --workdir={self.folder.parent}"
        target = self.folder.parent / "damaged" / str(step)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        source.rename(target)
        self._manager.reload()
        return f"it was moved to {target}"

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            if _is_full(error):
                raise UserError(
                    f"no space left on the disk of {self.folder}: the checkpoints there are whole; "
                    "free some space and give the same command again"
                ) from error
            raise


def _reader(folder: Path) -> ocp.CheckpointManager:
    """A manager of its own, since one reads an item in one way only."""
    return ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(create=False, read_only=True),
        item_names=("state",),
    )


def _tree(state: TrainState) -> dict[str, Any]:
    return {
        field: getattr(state, field)
        for field in ("step", "params", "model_state", "opt_state", "ema")
    }


def _kind(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"


def _empty(digest: str) -> np.ndarray:
    """An array of the shape and dtype that a digest begins with."""
    dtype, _, shape = digest.split(":")[0].partition("[")
    return np.empty([int(n) for n in shape[:-1].split(",") if n], jax.numpy.dtype(dtype))


def _digests(tree: Any) -> dict[str, str]:
    """'float32[3, 4]:digest' for each array, the digest over its bytes."""

    def digest(x: np.ndarray) -> str:
        return f"{_kind(x)}:{hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()}"

    return {path: digest(np.asarray(leaf)) for path, leaf in named_leaves(tree).items()}


def _json_digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def demand_same_data(restored: Restored, fingerprints: dict[str, str]) -> None:
    """Raises a UserError if the data is not what the checkpoint was made with."""
    then = restored.meta["data"]
    names = then.keys() | fingerprints.keys()
    if changed := sorted(name for name in names if then.get(name) != fingerprints.get(name)):
        raise UserError(
            f"the data changed since the checkpoint of step {restored.step:,} was made ({', '.join(changed)}): bring "
            "the old data back, or train in another workdir"
        )


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(
            error
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


@functools.cache
def _drop_stray_callbacks() -> None:
    """After a failed read or write, TensorStore's threads call into an event loop that is closed; each would
    print a traceback that says nothing beyond the error already raised."""

    def wrap(name: str, pick: Callable[[tuple], object]) -> None:
        show = getattr(sys, name)

        def hook(*args: Any) -> None:
            if str(pick(args)) != "Event loop is closed":
                show(*args)

        setattr(sys, name, hook)

    wrap("excepthook", lambda args: args[1])
    wrap("unraisablehook", lambda args: args[0].exc_value)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"
