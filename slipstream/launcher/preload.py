# SPDX-License-Identifier: Apache-2.0
"""Which allocator and which OpenMP runtime to preload: where they are looked for, and what each wants set.

What goes into a process's environment in the end, and who overrides whom: `environment.py`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from slipstream.decision import Decision
from slipstream.launcher.options import Libraries

SONAMES = {
    "tcmalloc": ("libtcmalloc.so.4", "libtcmalloc_minimal.so.4", "libtcmalloc.so", "libtcmalloc_minimal.so"),
    "jemalloc": ("libjemalloc.so.2", "libjemalloc.so.1", "libjemalloc.so"),
    "intel": ("libiomp5.so",),
}
"""Run-time names first: the bare `.so` comes with development packages only."""

INSTALL = {
    "tcmalloc": "apt install libgoogle-perftools4 or conda install -c conda-forge gperftools",
    "jemalloc": "apt install libjemalloc2 or conda install -c conda-forge jemalloc",
    "intel": "pip install intel-openmp",
}
JEMALLOC = "oversize_threshold:1,background_thread:true,metadata_thp:auto"
JEMALLOC_BENCHMARK = "oversize_threshold:1,background_thread:false,metadata_thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1"
# The system's malloc hands freed blocks above a moving threshold back to the kernel, and each next layer's
# activations then cost a page fault for every 4 KB. Its threshold ends at 32 MB, less than a batch of images, so no
# block gets a mapping of its own; the other number is "never give back from the top".
KEEP = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
ALLOCATORS = {
    "default": "the system's",
    "keep": "the system's, keeping freed blocks",
    "tcmalloc": "tcmalloc",
    "jemalloc": "jemalloc",
}
LD_CACHE = "/etc/ld.so.cache"

BestAllocator = Callable[[Mapping[str, Mapping[str, str]]], tuple[str, str]]


@dataclass(frozen=True)
class Preload:
    """Libraries in their order, variables as (name, value, reason), the choices, and what the user should know."""

    libraries: tuple[str, ...] = ()
    variables: tuple[tuple[str, str, str], ...] = ()
    decisions: tuple[Decision, ...] = ()
    warnings: tuple[str, ...] = ()


def choose_preload(
    libraries: Libraries,
    environ: Mapping[str, str],
    *,
    best_allocator: BestAllocator | None = None,
) -> Preload:
    """What to preload for these wishes.

    ``best_allocator`` takes the candidates by name, each the variables of a process that uses it, and gives the
    (name, reason) that `auto` takes; without it `auto` leaves everything as it is.
    """
    openmp = _openmp(libraries, environ)
    allocator = _allocator(libraries, environ, best_allocator)
    return Preload(
        openmp.libraries + allocator.libraries,
        openmp.variables + allocator.variables,
        openmp.decisions + allocator.decisions,
        openmp.warnings + allocator.warnings,
    )


def find_library(name: str, environ: Mapping[str, str]) -> str | None:
    """The file that serves as ``name`` (a key of SONAMES) in the venv, pip's or conda's folders, or the system's."""
    for soname in SONAMES[name]:
        for folder in _folders(environ):
            path = os.path.join(folder, soname)
            if os.path.isfile(path) and _fits(path):
                return path
        for path in _cached(soname):
            if os.path.isfile(path) and _fits(path):
                return path
    return None


def preloaded(name: str, environ: Mapping[str, str]) -> str | None:
    """The item of LD_PRELOAD that already is ``name``."""
    stems = {soname.split(".so")[0] for soname in SONAMES[name]}
    for item in re.split(r"[ :]+", environ.get("LD_PRELOAD", "")):
        if os.path.basename(item).split(".so")[0] in stems:
            return item
    return None


def _openmp(libraries: Libraries, environ: Mapping[str, str]) -> Preload:
    if libraries.omp_runtime == "default":
        return Preload(decisions=(Decision("OpenMP: Intel's preloaded", False, "torch's own was asked for"),))
    if libraries.omp_runtime == "auto":
        why = "torch is built and tested with its own; --omp-runtime intel preloads Intel's"
        return Preload(decisions=(Decision("OpenMP: Intel's preloaded", False, why),))
    path = preloaded("intel", environ) or find_library("intel", environ)
    if path is None:
        missing = "libiomp5.so is not here"
        return Preload(
            decisions=(Decision("OpenMP: Intel's preloaded", False, missing),),
            warnings=(f"--omp-runtime intel: {missing}; {INSTALL['intel']}",),
        )
    settings = (
        ("KMP_AFFINITY", "none", "Intel's OpenMP leaves threads on the instance's CPUs: compact would put all on one"),
        ("KMP_BLOCKTIME", "1", "threads sleep 1 ms after work, so that the next kernel's threads find free cores"),
    )
    decision = Decision("OpenMP: Intel's preloaded", True, f"as asked: {path}")
    return Preload(() if preloaded("intel", environ) else (path,), settings, (decision,))


def _allocator(libraries: Libraries, environ: Mapping[str, str], best: BestAllocator | None) -> Preload:
    name, reason = libraries.allocator, "as asked"
    for present in ("tcmalloc", "jemalloc"):
        if preloaded(present, environ):
            decision = Decision(f"allocator: {present}", True, "already in LD_PRELOAD")
            return Preload((), _settings(present, libraries), (decision,))
    if name == "auto":
        if best is None:
            name, reason = "default", "not measured: auto does so for Python programs, on the machine that runs them"
        else:
            name, reason = best(_candidates(libraries, environ))
    decision = Decision(f"allocator: {ALLOCATORS[name]}", True, reason)
    if name in {"default", "keep"}:
        return Preload((), _settings(name, libraries), (decision,))
    path = find_library(name, environ)
    if path is None:
        return Preload(
            decisions=(Decision(decision.what, False, "the library is not here"),),
            warnings=(f"--memory-allocator {name}: the library is not here; {INSTALL[name]}",),
        )
    return Preload((path,), _settings(name, libraries), (decision,))


def _candidates(libraries: Libraries, environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The variables of a process with each allocator that is here."""
    found: dict[str, dict[str, str]] = {"default": {}}
    for name in ("keep", "tcmalloc", "jemalloc"):
        path = find_library(name, environ) if name in SONAMES else ""
        if path is not None:
            found[name] = {variable: value for variable, value, _ in _settings(name, libraries)}
            if path:
                found[name]["LD_PRELOAD"] = path
    return found


def _settings(allocator: str, libraries: Libraries) -> tuple[tuple[str, str, str], ...]:
    if allocator == "keep":
        return (("GLIBC_TUNABLES", KEEP, "freed blocks stay in the process, up to 16 GB: no page faults at their next use"),)
    if allocator != "jemalloc":
        return ()
    if libraries.benchmark:
        return (("MALLOC_CONF", JEMALLOC_BENCHMARK, "--benchmark: memory is never given back"),)
    return (("MALLOC_CONF", JEMALLOC, "large blocks get an arena of their own; memory returns in the background"),)


def _folders(environ: Mapping[str, str]) -> Iterator[str]:
    """Where libraries of this interpreter's surroundings lie, nearest first, each once."""
    prefixes = [sys.prefix, environ.get("VIRTUAL_ENV"), environ.get("CONDA_PREFIX"), sys.base_prefix]
    folders = [os.path.join(prefix, "lib") for prefix in prefixes if prefix]
    for entry in sys.path:  # wheels that carry libraries put them in NAME.libs or NAME/lib
        if entry.endswith(("site-packages", "dist-packages")) and os.path.isdir(entry):
            folders += [os.path.join(entry, name, "lib") for name in ("intel_openmp", "jemalloc", "tcmalloc")]
            folders += [os.path.join(entry, name) for name in os.listdir(entry) if name.endswith(".libs")]
    folders += [folder for folder in environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    folders.append(os.path.expanduser("~/.local/lib"))
    yield from dict.fromkeys(folders)


def _cached(soname: str) -> Iterator[str]:
    """Paths to ``soname`` in ldconfig's cache, whose strings are full paths that end in a zero byte."""
    try:
        with open(LD_CACHE, "rb") as file:
            content = file.read()
    except OSError:
        return
    for match in re.finditer(rb"/[^\0]*/" + re.escape(soname.encode()) + rb"(?=\0)", content):
        yield os.fsdecode(match.group())


def _fits(path: str) -> bool:
    """Whether a library is for this interpreter's kind of machine; the loader complains at every start if not."""
    return _machine(path) == _machine(sys.executable)


def _machine(path: str) -> bytes:
    """Class, byte order and machine out of the ELF header."""
    try:
        with open(path, "rb") as file:
            header = file.read(20)
    except OSError:
        return b""
    return header[4:6] + header[18:20]
