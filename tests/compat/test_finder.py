# SPDX-License-Identifier: Apache-2.0
"""Old imports are answered when the real package is absent, and only then; a refusal is one line with a remedy."""

import importlib
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from slipstream.compat import finder
from slipstream.compat.names import intel_extension_for_pytorch as table

OLD = "intel_extension_for_pytorch"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(OLD) is not None and not isinstance(sys.modules.get(OLD), finder.OldModule)
    and importlib.util.find_spec(OLD).origin != "slipstream.compat",
    reason="the real package is installed",
)  # fmt: skip
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def installed():
    finder.install()
    yield
    finder.uninstall()


def run(code, *, folder=None):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder or ""), str(ROOT)]).lstrip(os.pathsep)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)


def test_importing_compat_is_the_switch_and_imports_no_torch():
    done = run(
        "import sys\n"
        f"try:\n    import {OLD}\n    sys.exit('before the switch')\nexcept ImportError:\n    pass\n"
        f"import slipstream.compat\nimport {OLD} as ipex\n"
        "assert ipex.__version__.startswith('2.8.0+slipstream.')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_finder_is_last_and_there_once():
    finder.install()
    assert [isinstance(each, finder.OldNamesFinder) for each in sys.meta_path].count(True) == 1
    assert isinstance(sys.meta_path[-1], finder.OldNamesFinder)


def test_uninstalling_leaves_nothing():
    importlib.import_module(f"{OLD}.cpu.runtime")
    finder.uninstall()
    assert not [name for name in sys.modules if name.startswith(OLD)]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(OLD)


def test_the_real_package_comes_first(tmp_path):
    package = tmp_path / OLD
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = 'the real one'\n")
    done = run(
        f"import slipstream.compat\nimport {OLD}\nassert {OLD}.__version__ == 'the real one'\n"
        f"try:\n    import {OLD}.cpu\nexcept ModuleNotFoundError as error:\n    print(error)",
        folder=tmp_path,
    )
    assert done.stderr == ""
    assert done.stdout == f"No module named '{OLD}.cpu'\n"  # what it lacks is not made up


@pytest.mark.parametrize("name", sorted(table.SERVED))
def test_every_name_of_the_table_is_there_both_ways(name):
    if name == "optimize" or name.endswith(".optimize"):
        pytest.importorskip("slipstream.optimize.optimize_model", reason="optimize_model is not there")
    module, _, attribute = f"{OLD}.{name}".rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    target, _, inside = table.SERVED[name].partition(":")
    assert found is getattr(importlib.import_module(target), inside)
    by_dots = importlib.import_module(OLD)
    for part in name.split("."):
        by_dots = getattr(by_dots, part)
    assert by_dots is found
    assert attribute in dir(importlib.import_module(module))
    assert attribute in importlib.import_module(module).__all__


def test_the_whole_of_the_runtime_by_star():
    names = {}
    exec(f"from {OLD}.cpu.runtime import *", names)
    expected = {"CPUPool", "pin", "Task", "MultiStreamModule", "MultiStreamModuleHint", "get_default_num_streams"}
    assert expected | {"is_runtime_ext_enabled", "get_core_list_of_node_id"} <= set(names)


@pytest.mark.parametrize("name", sorted(table.NOT_SERVED))
def test_what_is_not_served_says_why_in_one_line(name):
    if name in finder._packages(table):
        name += ".nothing_of_this_name"
    message = finder._refusal(table, f"{OLD}.{name}", name)
    assert "\n" not in message
    module, _, attribute = f"{OLD}.{name}".rpartition(".")
    with pytest.raises(ImportError) as caught:
        exec(f"from {module} import {attribute}")
    assert str(caught.value).startswith(f"{OLD}.") or "is not served" in str(caught.value)
    with pytest.raises(ImportError, match=r"is not served by slipstream\.compat: "):
        importlib.import_module(f"{OLD}.{name}")


@pytest.mark.parametrize(
    ("statement", "kind", "words"),
    [
        (f"from {OLD} import xpu", ImportError, "use the xpu device of PyTorch"),
        (f"import {OLD}.xpu", ImportError, "use the xpu device of PyTorch"),
        (f"import {OLD}; {OLD}.xpu", AttributeError, "use the xpu device of PyTorch"),
        (f"from {OLD}.quantization import prepare", ImportError, "quantize with torchao"),
        (f"from {OLD}.nn.functional import interaction", ImportError, "write the expression in PyTorch"),
        (f"import {OLD}; {OLD}.cpu.runtime.CPUPools", AttributeError, "not a name of the runtime API"),
        (f"import {OLD}; {OLD}.never_heard_of", AttributeError, "install that package, or remove the use"),
        (f"from {OLD} import never_heard_of", ImportError, "install that package, or remove the use"),
        (f"import {OLD}.optimize", ModuleNotFoundError, f"No module named '{OLD}.optimize'"),
    ],
)
def test_each_way_of_asking_gets_the_reason(statement, kind, words):
    with pytest.raises(kind, match=words):
        exec(statement, {})


def test_asking_whether_a_name_is_there_is_harmless():
    ipex = importlib.import_module(OLD)
    assert not hasattr(ipex, "xpu")
    assert hasattr(ipex, "cpu")
    assert {"cpu", "nn", "optimize"} <= set(dir(ipex))


def test_other_packages_are_not_touched():
    assert finder.OldNamesFinder().find_spec("a_package_of_no_table") is None
    with pytest.raises(ModuleNotFoundError, match="No module named 'a_package_of_no_table'"):
        importlib.import_module("a_package_of_no_table")
