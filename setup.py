# SPDX-License-Identifier: Apache-2.0
"""Builds the native extension, csrc/ -> slipstream/_native.so. Everything else stands in pyproject.toml.

The extension is optional: where there is no torch or no C++ compiler to build with, the reason is printed and the package is
installed without it; its plain-torch twins then serve. No instruction-set flag stands on the command line, so that an inline
function of a shared header can never come out with instructions that the processor lacks: each file in csrc/levels opens its
own target region.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).parent.resolve()
SOURCES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp"))
HEADERS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h"))
# The stable ABI of this torch is asked for, so that one build serves every later one: 0xMMmm0000_00000000.
TORCH_TARGET_VERSION = "0x020a000000000000"
COMPILE_FLAGS = [
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra",
]  # fmt: skip


def torch_folder() -> pathlib.Path:
    """Where torch is installed; importing it would take a second and is not needed."""
    import importlib.util

    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise RuntimeError("torch is not installed in the environment that builds (pip install --no-build-isolation)")
    return pathlib.Path(spec.origin).parent


class BuildNative(build_ext):
    """Compiles each source once with the C++ compiler, several at a time, and links them against torch."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(pathlib.Path(*fullname.split("."))) + ".so"  # not a Python module: torch.ops loads it

    def build_extension(self, extension: Extension) -> None:
        try:
            self.compile_and_link(extension)
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            if os.environ.get("SLIPSTREAM_REQUIRE_NATIVE") == "1":
                raise
            reason = f"slipstream: the native extension was not built; the plain-torch twins will serve ({error})"
            print(reason, file=sys.stderr)

    def compile_and_link(self, extension: Extension) -> None:
        torch = torch_folder()
        compiler = os.environ.get("CXX", "g++")
        asked = os.environ.get("CXXFLAGS", "").split()  # a sanitizer's, say: they come last, and go to the linker too
        objects = pathlib.Path(self.build_temp)
        include = ["-isystem", f"{torch}/include"]  # warnings of torch's own headers are not ours to mend
        newest_header = max(os.path.getmtime(ROOT / header) for header in HEADERS)

        def compile_one(source: str) -> str:
            target = objects / (source.replace("/", "_") + ".o")
            if target.exists() and target.stat().st_mtime > max(os.path.getmtime(ROOT / source), newest_header):
                return str(target)
            flags = [*COMPILE_FLAGS, *asked, f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
            subprocess.run([compiler, *flags, *include, "-c", str(ROOT / source), "-o", str(target)], check=True)
            return str(target)

        objects.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            compiled = list(pool.map(compile_one, extension.sources))
        library = pathlib.Path(self.get_ext_fullpath(extension.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(".unfinished")
        link = ["-shared", *asked, "-o", str(unfinished), *compiled, f"-L{torch}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
        subprocess.run([compiler, *link], check=True)
        os.replace(unfinished, library)  # a process that has the old file mapped keeps it whole


setup(ext_modules=[Extension("slipstream._native", SOURCES, optional=True)], cmdclass={"build_ext": BuildNative})
