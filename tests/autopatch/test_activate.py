# SPDX-License-Identifier: Apache-2.0
"""The environment of a child: ours first and once, nothing of the user's lost, no hidden working directory."""

import json
import os

import pytest

from slipstream import env
from slipstream.autopatch import activate, import_hook
from slipstream.autopatch.settings import Settings

S = os.pathsep


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, []),
        ("", []),
        ("a", ["a"]),
        (f"a{S}b", ["a", "b"]),
        (f"{activate.ON_PATH}{S}a", ["a"]),
        (f"a{S}{activate.ON_PATH}", ["a"]),
        (f"a{S}{S}b", ["a", ".", "b"]),
        (f"a{S}", ["a", "."]),
    ],
)
def test_python_path(before, after):
    environ = {"HOME": "/h"} if before is None else {"HOME": "/h", "PYTHONPATH": before}
    given = dict(environ)
    child = activate.child_environment(Settings(), environ)
    assert child["PYTHONPATH"].split(S) == [activate.ON_PATH, *after]
    assert child["HOME"] == "/h" and environ == given


def test_twice_is_once():
    child = activate.child_environment(Settings(), {})
    assert activate.child_environment(Settings(), child) == child


@pytest.fixture
def fresh(monkeypatch):
    """A process that was not activated; nobody waits for torch, which this one has already."""
    asked = []
    monkeypatch.setattr(activate, "_state", {"settings": None})
    monkeypatch.setattr(import_hook, "after", lambda module, function: asked.append(module))
    monkeypatch.delenv(env.DISABLE, raising=False)
    return asked


def send(monkeypatch, settings, **changes):
    message = json.loads(activate.child_environment(settings, {})[env.AUTOPATCH])
    monkeypatch.setenv(env.AUTOPATCH, json.dumps({**message, **changes}))


def test_activation_waits_for_torch_once(fresh, monkeypatch):
    settings = Settings(dtype="bfloat16", budget_s=2.0)
    send(monkeypatch, settings)
    assert activate.activate() and not activate.activate()
    assert fresh == ["torch"]
    assert activate.activated_settings() == settings


@pytest.mark.parametrize("interpreter", [["/elsewhere", "3.11"], ["", ""]])
def test_another_interpreter_is_left_alone(fresh, monkeypatch, interpreter):
    send(monkeypatch, Settings(), interpreter=interpreter)
    assert not activate.activate() and not fresh


def test_the_switch_of_the_user(fresh, monkeypatch):
    send(monkeypatch, Settings())
    monkeypatch.setenv(env.DISABLE, "1")
    assert not activate.activate() and not fresh


def test_without_children_the_variable_goes(fresh, monkeypatch):
    send(monkeypatch, Settings(children=False))
    assert activate.activate()
    assert env.read(env.AUTOPATCH) is None


def test_nothing_sent_nothing_done(fresh, monkeypatch):
    monkeypatch.delenv(env.AUTOPATCH, raising=False)
    assert not activate.activate()
    assert activate.activated_settings() is None


def test_on_path_holds_one_file():
    assert [name for name in os.listdir(activate.ON_PATH) if name != "__pycache__"] == ["sitecustomize.py"]
