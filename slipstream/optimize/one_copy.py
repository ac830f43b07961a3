# SPDX-License-Identifier: Apache-2.0
"""--low-memory: once a weight is packed, its own values live in a file without a name, and memory holds the pack alone.

The parameter's memory becomes a private mapping of that file. Whoever reads the parameter, by whatever means and through
whatever reference, makes the kernel read the pages back, bit by bit as they were; whoever writes gets pages of its own.
No access has to be noticed for that, which would be impossible: a parameter is reached through references that a script
holds, and its memory through pointers. Where something else shares the memory now, it is left as it is.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import pathlib
import sys
import tempfile
import threading
from types import FrameType

import torch
from torch.nn import Parameter

from slipstream.optimize import packs

LEAST = 1 << 20
"""Bytes below which a weight stays where it is: many small mappings cost more than they free."""

IN_MEMORY_OR_REMOTE = ("tmpfs", "ramfs", "rootfs", "nfs", "nfs4", "cifs", "smb3", "9p", "fuse", "fuse.sshfs")
WAITING_FILES = ("threading.py", "queue.py", "selectors.py", "concurrent/futures/thread.py")


def obstacle(weight: torch.Tensor) -> str | None:
    """Why this weight cannot be moved, ever; None where it may be, perhaps later (`move` says when)."""
    if directory() is None:
        return "there is no directory on a local disk for temporary files (TMPDIR)"
    if type(weight) is not Parameter or weight.is_inference() or not weight.is_cpu:
        return "the weight is no plain parameter in memory"
    if weight.nbytes < LEAST:
        return "the weight is too small to be moved to a file"
    return None


def is_free(weight: torch.Tensor) -> bool:
    """Whether nobody else shares the memory, or may be reading it at this moment."""
    storage = weight.untyped_storage()
    if not storage.resizable() or storage.is_shared() or storage.nbytes() != weight.nbytes:
        return False
    if weight.storage_offset() or not torch.ops.aten.is_non_overlapping_and_dense(weight):
        return False
    return _holders(storage) == 1 and _others_wait()


def move(weight: torch.Tensor) -> bool:
    """Put the values into a file and map it; False where that cannot be done now. Raises OSError where the disk is full."""
    if not is_free(weight):
        return False
    pointer = weight.data_ptr()
    mapped = _mapped(weight)
    packs.exchange(weight, mapped, pointer)
    del mapped
    _give_memory_back()
    return True


@functools.cache
def directory() -> str | None:
    """For temporary files, on a local disk."""
    for place in (tempfile.gettempdir(), "/var/tmp"):
        if hasattr(os, "O_TMPFILE") and os.access(place, os.W_OK) and _file_system(place) not in IN_MEMORY_OR_REMOTE:
            return place
    return None


def _file_system(place: str) -> str:
    """Its type, by the longest mount point above it; tmpfs, which is refused, where that cannot be told."""
    best = ("", "tmpfs")
    path = os.path.realpath(place)
    try:
        mounts = pathlib.Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return best[1]
    for _, point, kind, *_ in (line.split() for line in mounts):
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]


def _mapped(weight: torch.Tensor) -> torch.Tensor:
    """The same values, shape and strides on a private mapping of a new file that has no name."""
    place = directory()
    assert place is not None  # `obstacle` has seen one
    file = os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(file, 0, weight.nbytes)
        # not by way of .numpy(), which marks the memory as shared for good
        left = memoryview((ctypes.c_char * weight.nbytes).from_address(weight.data_ptr())).cast("B")
        while left:
            left = left[os.write(file, left) :]
        area = mmap.mmap(file, weight.nbytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(file)
    return torch.frombuffer(area, dtype=weight.dtype).as_strided(weight.shape, weight.stride())


def _holders(storage: torch.UntypedStorage) -> int:
    """Tensors on this memory, without the handle that asks."""
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1


def _others_wait() -> bool:
    """Whether every other Python thread stands in a wait of the standard library, so that none is inside an operator."""
    own = threading.get_ident()
    return all(number == own or _is_waiting(frame) for number, frame in sys._current_frames().items())


def _is_waiting(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file.startswith(sys.base_prefix) and file.endswith(WAITING_FILES)


def _give_memory_back() -> None:
    """Memory that was freed inside the heap stays the process's until glibc is asked."""
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> ctypes._NamedFuncPointer | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
