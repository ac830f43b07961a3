# SPDX-License-Identifier: Apache-2.0
"""A function runs after an import, and the import is what it would have been."""

import importlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader

import pytest

from slipstream.autopatch import import_hook

calls = []


def called():
    calls.append("called")


def broken():
    raise RuntimeError("ours")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of a fresh name that exists and is not imported."""
    calls.clear()
    (tmp_path / "awaited_module.py").write_text("value = 1\n")
    (tmp_path / "raising_module.py").write_text("raise KeyError('theirs')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "awaited_module"
    import_hook.forget()
    sys.modules.pop("awaited_module", None)


HERE = f"{__name__}:called"


def test_runs_after_the_import_and_once(module):
    import_hook.after(module, HERE)
    assert importlib.util.find_spec(module) is not None and not calls
    loaded = importlib.import_module(module)
    assert loaded.value == 1 and calls == ["called"]
    assert type(loaded.__loader__) is SourceFileLoader and "exec_module" not in vars(loaded.__loader__)
    importlib.reload(loaded)
    assert calls == ["called"]
    assert not any(type(finder).__module__ == import_hook.__name__ for finder in sys.meta_path)


def test_at_once_when_it_is_there_already(module):
    importlib.import_module(module)
    import_hook.after(module, HERE)
    assert calls == ["called"]


def test_our_failure_is_not_the_imports(module):
    import_hook.after(module, f"{__name__}:broken")
    import_hook.after(module, "slipstream.nowhere" + ":nothing")
    assert importlib.import_module(module).value == 1


def test_their_failure_stays_theirs(module):
    import_hook.after("raising_module", HERE)
    with pytest.raises(KeyError, match="theirs"):
        importlib.import_module("raising_module")
    assert not calls


def test_a_missing_module_is_missing(module):
    import_hook.after("no_such_module_anywhere", HERE)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_anywhere")
