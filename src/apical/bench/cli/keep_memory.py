"""The C library's memory allocator: keep freed memory instead of giving it back at every step."""

import ctypes
import os

MMAP_THRESHOLD, TRIM_THRESHOLD = 1 << 30, (1 << 31) - 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_memory() -> None:
    """Keep freed memory for the next step, in this process and those it starts.

    Otherwise large nets return the memory of their activations to the system at every step, which
    clears each page before it is used again. Whether this option is faster depends on net and
    machine: measure it. No number of a run changes.

    Raises: ValueError where the C library is not glibc.
    """
    try:
        library = ctypes.CDLL("libc.so.6")
        done = library.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD) and library.mallopt(
            _M_TRIM_THRESHOLD, TRIM_THRESHOLD
        )
    except (OSError, AttributeError) as error:
        raise ValueError(f"--keep-memory needs glibc, not found here: {error}") from error
    if not done:
        raise ValueError("--keep-memory: the C library refused the settings")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(MMAP_THRESHOLD)
    os.environ["MALLOC_TRIM_THRESHOLD_"] = str(TRIM_THRESHOLD)
