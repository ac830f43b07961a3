# SPDX-License-Identifier: Apache-2.0
"""Scripts written for the old packages run under the codeless engine, and cost the others nothing."""

import os
import subprocess
import sys

from slipstream.autopatch import old_names
from slipstream.autopatch.activate import child_environment
from slipstream.autopatch.settings import Settings
from slipstream.compat import finder


def run(code, **variables):
    environment = child_environment(Settings(), {**os.environ, **variables})
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_the_packages_are_those_that_compat_serves():
    assert set(old_names.PACKAGES) == set(finder.TABLES)


def test_an_old_import_is_answered():
    result = run(
        "import torch, intel_extension_for_pytorch as ipex\n"
        "import intel_extension_for_pytorch.cpu.runtime\n"
        "model = torch.nn.Linear(8, 8).eval()\n"
        "model = ipex.optimize(model, dtype=torch.bfloat16)\n"
        "with torch.no_grad(): print(model(torch.ones(2, 8)).shape)"
    )
    assert result.stdout == "torch.Size([2, 8])\n", result.stderr


def test_nothing_of_compat_is_loaded_for_other_scripts():
    result = run("import sys, json; print(any(name.startswith('slipstream.compat') for name in sys.modules))")
    assert result.stdout == "False\n"


def test_a_real_package_wins(tmp_path):
    (tmp_path / "intel_extension_for_pytorch.py").write_text("mark = 'real'\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    assert run("import intel_extension_for_pytorch as ipex; print(ipex.mark)", **environment).stdout == "real\n"


def test_other_missing_modules_stay_missing():
    result = run("import no_such_module")
    assert "ModuleNotFoundError: No module named 'no_such_module'" in result.stderr
