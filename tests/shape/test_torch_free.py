# SPDX-License-Identifier: Apache-2.0
"""The launcher, the codeless bootstrap, compat and the runtime import without torch."""

import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "slipstream"
TORCH_FREE = ["launcher", "autopatch", "compat", "runtime"]
NEEDS_TORCH = {"slipstream.runtime.multi_stream"}


def torch_free_modules():
    for part in TORCH_FREE:
        for path in sorted((PACKAGE / part).rglob("*.py")):
            if "on_path" in path.parts:
                continue
            name = ".".join(("slipstream", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
            if name not in NEEDS_TORCH:
                yield name


def test_early_parts_do_not_import_torch():
    imports = "; ".join(f"import {name}" for name in torch_free_modules())
    code = f"import sys, slipstream; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("part", ["slipstream"])
def test_package_import_is_light(part):
    code = f"import sys, {part}; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
