"""The memory of the process: whether the C library keeps what tensors free.

On a CPU, large tensors come from the C library. By default glibc gives most of that memory back to the system as soon
as a tensor is freed, and gets new memory for the next tensor. The system then has to clear each page again. Rules
such as gamma make many large tensors one after the other, and half of their time may go into this.
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# The parameters of mallopt, from glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
#: The largest number that mallopt takes, in bytes.
_LARGEST = 2**31 - 1
_PAD = 2**28


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next tensors.

    Call this function once, at the start of a script that explains many inputs on a CPU. It has no effect on a GPU, and
    none on results. The process then holds the most memory that it ever needed at once, until it ends. Nothing in this
    package calls this function on import; the command line calls it in its own process.

    The function sets three parameters of glibc by ``mallopt``: the mmap threshold and the trim threshold to 2 GiB, and
    the top pad to 256 MiB.

    Returns:
        True if glibc took the settings. False where there is no glibc (macOS, Windows, Alpine Linux), or if glibc
        refused a setting: then the process works as before, only slower. An allocator that replaces glibc's own, such
        as jemalloc by ``LD_PRELOAD``, does not read the settings.

    Source: the manual page mallopt(3).

    Example::

        >>> from captum_cav.memory import keep_freed_memory
        >>> keep_freed_memory() in (True, False)
        True
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = {_MMAP_THRESHOLD: _LARGEST, _TRIM_THRESHOLD: _LARGEST, _TOP_PAD: _PAD}
    return all(library.mallopt(parameter, value) == 1 for parameter, value in settings.items())


def __dir__() -> list[str]:
    return list(__all__)
