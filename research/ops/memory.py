"""Memory for XLA on a CPU: keep what was freed, from step to step."""

import ctypes
import sys
from typing import Any

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8

_POINTER = ctypes.c_void_p
SMALL, LARGE = 4 << 10, 4 << 20  # bytes; what is from SMALL to half of LARGE is taken out of use
PIECES = 32  # of size LARGE, so many there are at least


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
    return all(mallopt(*setting) == 1 for setting in settings)


def settle(block: int) -> None:
    """Makes the heap orderly after a compilation, for steps whose temporaries are one block of so many bytes.

    Compiling leaves tens of thousands of free pieces. What they hold goes back to the system. Then those of middle
    size are taken and never returned: malloc searches its lists of them whenever a product of the step asks for room,
    and the step's threads wait for each other meanwhile; a small CNN's step took 14 ms instead of 11, MiniLM's 444
    instead of 405. At last one free piece is made for the block, with some room, and smaller ones: malloc takes the
    smallest that will do, and nothing that stays comes to lie where the block was. Else the block would be allocated
    anew elsewhere, and be there twice. All in all 20 to 60 ms.
    """
    info = _of_malloc("mallinfo2")
    if info is None:  # another libc, or a glibc before 2.33
        return
    lib = ctypes.CDLL(None)
    malloc, free, sbrk = lib.malloc, lib.free, lib.sbrk
    malloc.restype, malloc.argtypes, free.argtypes = _POINTER, [ctypes.c_size_t], [_POINTER]
    sbrk.restype, sbrk.argtypes, info.restype = _POINTER, [ctypes.c_ssize_t], _Info

    lib.malloc_trim(ctypes.c_size_t(0))
    now = info()
    end = sbrk(0) - now.keepcost  # what lies above was never used

    def take(size: int, least: int) -> list[int]:
        taken = []
        while size >= least:
            while (at := malloc(size)) and at < end:
                taken.append(at)
            free(at)
            size = size * 3 // 4
        return taken

    held = take(now.fordblks, LARGE // 2)
    take(LARGE // 2, SMALL)
    for size in (block + 2 * LARGE, *[LARGE] * (PIECES - len(held))):
        held.append(malloc(size))
        malloc(2 * SMALL)  # what keeps one apart from the next
    few = [malloc(size) for size in range(24, 1024, 16) for _ in range(2 * PIECES)]
    held += few[::2]
    for at in held:
        free(at)


def _of_malloc(name: str) -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)  # musl has none
