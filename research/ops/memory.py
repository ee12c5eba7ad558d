"""Memory for XLA on a CPU: keep what was freed, from step to step."""

import ctypes
import sys
from typing import Any

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep freed memory in the process instead of returning it to the system.

    XLA allocates one buffer for a whole train step's temporaries and frees it at the end. malloc would map it anew for
    every step, and the system would clear it page by page: 28,000 page faults and 40 of the 60 ms that a
    small CNN's step took at first. The price is memory that is not given back but by `give_back`.

    Call it once, at the start, before JAX allocates. Elsewhere than on Linux with glibc nothing happens.

    Returns:
      Whether all three settings were taken.
    """
    mallopt = _of_malloc("mallopt")
    if mallopt is None:
        return False
    settings = (
        (M_ARENA_MAX, 1),  # one heap for all threads: what one frees, another may use
        (M_MMAP_MAX, 0),  # large blocks come from the heap as well
        (M_TRIM_THRESHOLD, -1),  # and its end is never given back, not even gigabytes
    )
    return all(mallopt(*setting) == 1 for setting in settings)


def give_back() -> None:
    """Gives the system what is free now, all over the heap; a few ms.

    For once, after something that took much and will not come again: a compilation, above all.
    """
    if trim := _of_malloc("malloc_trim"):
        trim(ctypes.c_size_t(0))


def _of_malloc(name: str) -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)  # musl has none
