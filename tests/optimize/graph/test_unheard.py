# SPDX-License-Identifier: Apache-2.0
"""What a forward says and nobody hears makes it no less a graph, for as long as nobody does."""

import functools
import logging
import warnings

import pytest
import torch
from torch import nn

from slipstream.optimize.graph.capturing.capture import capture
from slipstream.optimize.graph.capturing.refusals import CaptureRefused

logger = logging.getLogger("a script's")


class Shouting(logging.Logger):
    def debug(self, *_, **__):
        raise AssertionError("is heard at every level")


loud = Shouting("a loud script's")


@functools.lru_cache(None)
def warning_once(self, *args, **kwargs):
    self.warning(*args, **kwargs)


class Says(nn.Module):
    def __init__(self, say):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.say = say

    def forward(self, x):
        self.say(x)
        return self.layer(x)


class Asks(nn.Module):
    def forward(self, x):
        return x + 1 if logger.isEnabledFor(logging.DEBUG) else x - 1


def debug(x):
    logger.debug("rows: %s", x.shape[0])


def info(x):
    logger.log(logging.INFO, "rows")


def of_root(x):
    logging.info("rows")


def warn(x):
    warnings.warn("rows are old", stacklevel=1)


def warn_of_caller(x):
    warnings.warn("rows are old", DeprecationWarning, stacklevel=2)


@pytest.fixture(autouse=True)
def _levels(monkeypatch):
    monkeypatch.setattr(logging.Logger, "warning_once", warning_once, raising=False)
    root, before = logging.getLogger(), (logging.getLogger().level, list(logging.getLogger().handlers))
    root.setLevel(logging.WARNING)
    root.addHandler(handler := logging.NullHandler())
    yield
    root.setLevel(before[0])
    root.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def captured(model):
    with torch.no_grad():
        return capture(model.eval(), (torch.ones(2, 4),), {}, dynamic=False)


def holds(found, model):
    with torch.no_grad():
        return found.holds({"self": model, "x": torch.ones(2, 4)})


@pytest.mark.parametrize("say", [debug, info])
def test_below_the_level(say):
    model = Says(say)
    found = captured(model)
    assert holds(found, model)
    logger.setLevel(logging.DEBUG)
    assert not holds(found, model)
    with pytest.raises(CaptureRefused, match="Logger"):
        captured(model)


def test_the_roots_level():
    model = Says(of_root)
    found = captured(model)
    assert holds(found, model)
    logging.getLogger().setLevel(logging.INFO)
    assert not holds(found, model)


def test_a_level_that_is_asked_for():
    model = Asks()
    off = captured(model)
    logger.setLevel(logging.DEBUG)
    on = captured(model)
    assert (holds(off, model), holds(on, model)) == (False, True)
    x = torch.ones(2, 4)
    assert torch.equal(on.wrap(on.graph)(model, x), x + 1)
    assert torch.equal(off.wrap(off.graph)(model, x), x - 1)


def test_a_logger_of_another_kind_is_heard():
    with pytest.raises(CaptureRefused):
        captured(Says(lambda x: loud.debug("rows")))


def test_another_logger_in_its_place(monkeypatch):
    model = Says(debug)
    found = captured(model)
    monkeypatch.setitem(globals(), "logger", logging.getLogger("another one"))
    assert not holds(found, model)


def test_what_is_said_once_was_said():
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    model = Says(lambda x: logger.warning_once("rows are few"))
    warning_once.cache_clear()
    logger.addHandler(handler)
    try:
        model(torch.ones(2, 4))
        assert holds(captured(model), model)
        model(torch.ones(2, 4))
    finally:
        logger.removeHandler(handler)
    assert said == ["rows are few"]


@pytest.mark.parametrize("say", [warn, warn_of_caller])
def test_ignored_warnings(say):
    model = Says(say)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = captured(model)
        assert holds(found, model)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert not holds(found, model)
        with pytest.raises(CaptureRefused, match="warning"):
            captured(model)


def test_warnings_that_would_be_raised():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CaptureRefused, match="warning"):
            captured(Says(warn))


@pytest.mark.parametrize("action", ["default", "module", "once"])
def test_warnings_that_were_shown(action):
    model = Says(warn)
    globals().pop("__warningregistry__", None)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter(action)
        with pytest.raises(CaptureRefused, match="warning"):
            captured(model)  # not yet
        model(torch.ones(2, 4))
        assert holds(captured(model), model)
        model(torch.ones(2, 4))
    assert len(shown) == 1
