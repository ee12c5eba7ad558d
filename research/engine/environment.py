"""What a run's bits depend on beside its config: versions, devices, cores, flags."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_CODE = ("research", "configs", "launch.py")


def environment() -> dict[str, Any]:
    """Where this process runs, as `run.json` holds it. Starts JAX's devices.

    Returns:
        'versions' (of python and the libraries), 'platform', 'devices' (kind, count, processes),
        'cpu_cores' this process may use, 'xla_flags' and, where the code lies in a git checkout,
        'git' (revision, and dirty: the code differs from it).
    """
    import jax

    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found: dict[str, Any] = {
        "versions": versions,
        "platform": platform.platform(),
        "devices": {
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "cpu_cores": cpu_cores(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    git = _git(Path(__file__).resolve().parents[2])
    return found | ({"git": git} if git else {})


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What differs between two environments (or `run.json`s), what changes bits most first.

    Returns:
        Lines such as 'jax version: 0.10.2, now 0.12.0'; none where all is the same. The same bits
        are promised while 'jax version', 'CPU cores', 'devices', 'device kind' and 'XLA flags' agree.
    """
    lines = []
    for name, path in _compared(a, b).items():
        old, new = _get(a, path), _get(b, path)
        if path == ("xla_flags",):  # their order means nothing
            old, new = (" ".join(sorted((flags or "").split())) for flags in (old, new))
        if old != new:
            lines.append(f"{name}: {_word(old)}, now {_word(new)}")
    return lines


def _compared(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    names = {
        "jax version": ("versions", "jax"),
        "CPU cores": ("cpu_cores",),
        "devices": ("devices", "count"),
        "device kind": ("devices", "kind"),
        "XLA flags": ("xla_flags",),
        "processes": ("devices", "processes"),
    }
    for package in a.get("versions", {}) | b.get("versions", {}):
        names.setdefault(f"{package} version", ("versions", package))
    return names | {
        "platform": ("platform",),
        "git revision": ("git", "revision"),
        "git changes": ("git", "dirty"),
    }


def _get(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _word(value: Any) -> str:
    return "none" if value in (None, "") else str(value)


def cpu_cores() -> int:
    """Cores that this process may use: XLA splits work by it, which changes rounding."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git(root: Path) -> dict[str, Any] | None:
    """The checkout's revision, or None outside git or without it."""

    def ask(*words: str) -> str:
        # Optional locks off: asking must not write into a checkout that another process uses.
        command = ["git", "--no-optional-locks", "-C", str(root), *words]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return answer.stdout.strip()

    try:
        return {
            "revision": ask("rev-parse", "HEAD"),
            "dirty": bool(ask("status", "--porcelain", "--", *_CODE)),
        }
    except (OSError, subprocess.SubprocessError):
        return None
