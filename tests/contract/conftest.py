# SPDX-License-Identifier: Apache-2.0
"""The contract's tests force every piece on, as the engine's own do, so that a piece which is wrong shows."""

import importlib.util
import pathlib
import sys

import pytest
import torch

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))  # for the tables of models, however pytest imports the tests


def _engine_fixtures():
    specification = importlib.util.spec_from_file_location("engine_fixtures", HERE.parent / "optimize" / "conftest.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


_fixtures = _engine_fixtures()
always_faster, clean, engine, seeded = _fixtures.always_faster, _fixtures.clean, _fixtures.engine, _fixtures.seeded
nothing_measured_before = _fixtures.nothing_measured_before


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order, so that two plain runs agree to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
