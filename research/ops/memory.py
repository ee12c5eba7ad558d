"""Memory for XLA on a CPU: keep what was freed, from step to step."""

import ctypes
import sys
import threading
from typing import Any

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8

SMALL, LARGE = 4 << 10, 4 << 20  # bytes; see `settle`
PIECES = 32

_POINTER = ctypes.c_void_p
_lock = threading.Lock()
_state: dict[str, Any] = {"kept": False, "largest": 0, "pieces": False}  # of this process's heap


class _Info(ctypes.Structure):
    """struct mallinfo2."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep freed memory in the process instead of returning it to the system.

    XLA allocates one buffer for a whole train step's temporaries and frees it at the end. malloc would map it anew for
    every step, and the system would clear it page by page: 28,000 page faults and 40 of the 60 ms that a
    small CNN's step took at first. The price is memory that is not given back but by `settle`.

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
    _state["kept"] = all(mallopt(*setting) == 1 for setting in settings)
    return _state["kept"]


def settle(block: int) -> None:
    """Makes the heap orderly after a compilation, for a program whose temporaries are one block of so many bytes.

    Compiling leaves tens of thousands of free pieces. What they hold goes back to the system. Then those of middle
    size are taken and never returned: malloc searches its lists of them whenever a product of the step asks for room,
    and the step's threads wait for each other meanwhile; a small CNN's step took 14 ms instead of 11, MiniLM's 444
    instead of 405. One gap is kept free for the block, or the largest that there was, with some room, and beside it
    smaller ones: malloc takes the smallest that will do, and nothing that stays comes to lie where the block was. Else
    the block would be allocated anew elsewhere, and be there twice. All in all 20 to 60 ms.

    Where `keep_freed_memory` had no effect or glibc is older than 2.33, memory is given back and that is all.
    """
    if trim := _of_malloc("malloc_trim"):
        trim(ctypes.c_size_t(0))
    if _state["kept"] and _of_malloc("mallinfo2"):
        with _lock:
            _arrange(ctypes.CDLL(None), block)


def _arrange(lib: Any, block: int) -> None:
    malloc, free, sbrk, info = lib.malloc, lib.free, lib.sbrk, lib.mallinfo2
    malloc.restype, malloc.argtypes, free.argtypes = _POINTER, [ctypes.c_size_t], [_POINTER]
    lib.memalign.restype = lib.realloc.restype = _POINTER
    lib.memalign.argtypes, lib.realloc.argtypes = [ctypes.c_size_t] * 2, [_POINTER, ctypes.c_size_t]
    sbrk.restype, sbrk.argtypes, info.restype = _POINTER, [ctypes.c_ssize_t], _Info

    _state["largest"] = max(_state["largest"], block)
    # Where the last gap is, if that will do. From 48 bytes past a multiple of 64 malloc cuts an aligned block without
    # leaving a piece of some 100 bytes behind it, which the thread would keep for itself: the block did not fit again.
    gap = _state["largest"] + 2 * LARGE
    lib.realloc(lib.memalign(64, gap + 64), 40)
    free_later = [malloc(gap)]
    now = info()
    end, left = sbrk(0) - now.keepcost, now.fordblks  # what lies above the end was never used

    def take(size: int, least: int) -> list[int]:
        nonlocal left
        taken = []
        while size >= least:
            while left > 0 and (at := malloc(size)):
                if at >= end:
                    free(at)
                    break
                taken.append(at)
                left -= size
            size = size * 3 // 4
        return taken

    # Older gaps are not returned: they hold no memory, and two programs' blocks would lie in two of them.
    take(left, 2 * LARGE)
    free_later += take(2 * LARGE, LARGE // 2)
    take(LARGE // 2, SMALL)
    if not _state["pieces"]:
        _state["pieces"] = True
        sizes = [size for size in range(24, 1024, 16) for _ in range(PIECES)] + [LARGE] * PIECES
        for size in sizes:
            free_later.append(malloc(size))
            malloc(min(size, 2 * SMALL))  # what keeps one apart from the next
    for at in free_later:
        free(at)


def _of_malloc(name: str) -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)  # musl has none
