# SPDX-License-Identifier: Apache-2.0
"""Graphs within the script's own autocast, and of forwards that have autocast within them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slipstream.decision import log
from slipstream.optimize.graph import background, tier
from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.graph.models import CASES, Encoder
from tests.optimize.judging import error

pytestmark = [
    needs_native,
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]
LIMIT = 3e-2


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for part in (value.values() if isinstance(value, dict) else value) for leaf in tensors(part)]


def inside(model, *args, dtype=torch.bfloat16):
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        return model(*args)


def settle_inside(model, *args):
    with torch.autocast("cpu", torch.bfloat16):
        return settle(model, *args)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_same_answer_inside_autocast(at_once, case, dtype):
    model, args = CASES[case]()
    wanted = inside(model, *args)
    at_once(dtype)
    root = settle_inside(model, *args)
    (way,) = root.ways
    assert list(way.won.values()) == [True]
    got = inside(model, *args)
    assert way.program.broken is None
    for ours, theirs in zip(tensors(got), tensors(wanted), strict=True):
        assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        assert error(ours, theirs) < LIMIT


def test_each_state_has_a_graph_of_its_own(at_once):
    model, args = CASES["encoder"]()
    with torch.inference_mode():
        exact = model(*args)
    at_once("float32")
    root = settle_inside(model, *args)
    assert len(root.ways) == 1
    settle(model, *args)
    assert len(root.ways) == 2, [str(d) for d in log]
    with torch.inference_mode():
        assert error(tensors(model(*args))[0], tensors(exact)[0]) < 1e-5
    halves = inside(model, *args, dtype=torch.float16)
    assert tensors(halves)[0].dtype == tensors(inside(model._call_impl, *args, dtype=torch.float16))[0].dtype


def test_residual_sums_of_two_dtypes_are_fused(at_once):
    model, args = CASES["encoder"]()
    at_once("float32")
    graph = settle_inside(model, *args).ways[0].program.lowered.fast.graph
    names = [str(getattr(node.target, "kind", node.target)) for node in graph.nodes if node.op.startswith("call")]
    assert (names.count("linear"), names.count("joint_linear"), names.count("attention")) == (7, 2, 2)
    assert sum("add" in name for name in names) == 1  # of the embeddings
    assert not any("gelu" in name for name in names)


class Within(nn.Module):
    """Autocast around a part, another precision within that, and plain float32 behind it."""

    def __init__(self):
        super().__init__()
        self.body, self.exact, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 8)

    def forward(self, x, at):
        with torch.autocast("cpu", torch.bfloat16):
            y = self.body(x).relu()
            with torch.autocast("cpu", enabled=False):
                y = self.exact(y.float())
            y = torch.index_select(y, 0, at)
            y = self.body(y)
        return self.head(F.gelu(y).float()), y


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_autocast_within_a_forward(at_once, dtype):
    model, args = Within().eval(), (torch.randn(6, 32), torch.tensor([1, 4, 2]))
    with torch.inference_mode():
        wanted = model(*args)
    at_once(dtype)
    (way,) = settle(model, *args).ways
    with torch.inference_mode():
        got = model(*args)
    assert way.program.broken is None and list(way.won.values()) == [True]
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride()) and error(ours, theirs) < LIMIT


def test_an_error_within_a_region_does_not_leave_it_open(at_once):
    model, x = Within().eval(), torch.randn(6, 32)
    at_once("float32")
    settle(model, x, torch.tensor([1, 4, 2]))
    nesting = torch.autocast_increment_nesting(), torch.autocast_decrement_nesting()
    with torch.inference_mode(), pytest.raises(IndexError):
        model(x, torch.tensor([1, 4, 77]))
    assert not torch.is_autocast_enabled("cpu")
    assert (torch.autocast_increment_nesting(), torch.autocast_decrement_nesting()) == nesting


def test_a_graph_from_outside_is_not_used_inside(at_once):
    at_once("float32")
    model, x = Encoder().eval(), CASES["encoder"]()[1]
    root = settle(model, *x)
    (way,) = root.ways
    seen = []
    run, way.run = way.run, lambda *args, **kwargs: seen.append(1) or run(*args, **kwargs)
    assert tensors(inside(model, *x))[0].dtype in (torch.bfloat16, torch.float32)
    assert not seen
    background.wait()
    assert tier.root_call(model) is root
