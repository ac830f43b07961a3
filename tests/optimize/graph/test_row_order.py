# SPDX-License-Identifier: Apache-2.0
"""Windows, rolls and merged patches are read as orders of rows; blocks work on in such an order, and answer as before."""

import copy
import itertools
import operator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from slipstream.optimize.graph.operators.linear import Linear
from slipstream.optimize.graph.rows import order
from slipstream.optimize.graph.rows.moves import rows_of
from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.graph.test_written_out_attention import answers, lowered
from tests.optimize.judging import LIMIT, error


def windows(x, side):
    batch, height, width, columns = x.shape
    parts = x.view(batch, height // side, side, width // side, side, columns)
    return parts.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, side * side, columns)


def image(parts, side, height, width):
    columns = parts.shape[-1]
    x = parts.view(-1, height // side, width // side, side, side, columns)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, columns)


def merged(x):
    return torch.cat([x[:, i::2, j::2, :] for j, i in itertools.product(range(2), range(2))], -1)


class Block(nn.Module):
    """Attention in windows, shifted, as Swin has it; every way of getting lost between the two orders can be switched on."""

    def __init__(self, columns, side, shift, *, pads=False, reads_between=False):
        super().__init__()
        self.before, self.after = nn.LayerNorm(columns), nn.LayerNorm(columns)
        self.qkv, self.out = nn.Linear(columns, 3 * columns), nn.Linear(columns, columns)
        self.up, self.down = nn.Linear(columns, 2 * columns), nn.Linear(2 * columns, columns)
        self.side, self.shift, self.pads, self.reads_between = side, shift, pads, reads_between

    def forward(self, x):
        _, height, width, columns = x.shape
        normed = self.before(x)
        y = normed
        behind = (0, 0, 0, -width % self.side, 0, -height % self.side) if self.pads else (0,) * 6
        y = torch.roll(F.pad(y, behind), (-self.shift, -self.shift), (1, 2))
        padded = y.shape[1:3]
        parts = windows(y, self.side)
        q, k, v = self.qkv(parts).view(len(parts), -1, 3, 2, columns // 2).permute(2, 0, 3, 1, 4)
        y = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(parts.shape))
        y = torch.roll(image(y, self.side, *padded), (self.shift, self.shift), (1, 2))[:, :height, :width].contiguous()
        x = x + y
        z = self.after(x)
        z = self.down(F.gelu(self.up(z)))
        return x + z + normed.mean(1, keepdim=True) if self.reads_between else x + z


class Model(nn.Module):
    def __init__(self, columns=32, side=4, shifts=(0, 2), merges=False, returned=False, **kinds):
        super().__init__()
        self.first = nn.Linear(columns, columns)
        self.blocks = nn.ModuleList(Block(columns, side, shift, **kinds) for shift in shifts)
        self.reduce = nn.Linear(4 * columns, columns) if merges else None
        self.returned = returned

    def forward(self, x):
        x = first = self.first(x)
        for block in self.blocks:
            x = block(x)
        if self.reduce is not None:
            x = self.reduce(merged(x))
        return (x, first, x.flatten(1, 2).mean(1)) if self.returned else x


def same(results, model, x, dtype):
    wanted = answers(model, (x,))
    for made, own in zip(results, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        assert (made.dtype, made.shape, made.stride()) == (own.dtype, own.shape, own.stride())
        assert error(made, own) < LIMIT[dtype]


@needs_native
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({}, 3),  # into the first order, into the second, and back
        ({"shifts": (0, 0, 0)}, 2),  # one order for all blocks
        ({"shifts": (0, 2, 1), "returned": True}, 4),
        ({"merges": True}, 3),  # out of the last order straight into merged patches
        ({"shifts": ()}, 0),
    ],
)
def test_a_block_works_in_the_order_of_its_windows(kinds, expected, dtype):
    torch.manual_seed(1)
    model, x = Model(**kinds).eval(), torch.randn(2, 8, 12, 32)
    program, results, names = lowered(model, (x,), dtype)
    assert names.count("row_gather") == expected
    assert not {"roll", "pad", "add"} & {*names}
    linears = [node for node in program.fast.graph.nodes if isinstance(node.target, Linear)]
    assert sum(node.args[1] is not None for node in linears) == 2 * len(model.blocks), "each sum is a linear's residual"
    same(results, model, x, dtype)


@needs_native
@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("kinds", [{"pads": True}, {"reads_between": True}, {"returned": True}, {"columns": 24}])
def test_what_is_not_only_another_order_stays_right(kinds, merges):
    torch.manual_seed(2)
    model = Model(merges=merges, **kinds).eval()
    x = torch.randn(2, 10 if "pads" in kinds else 8, 12, kinds.get("columns", 32))
    same(lowered(model, (x,), "float32")[1], model, x, "float32")


class Cut(nn.Module):
    """Sums in the order of rows that are only a part of what there is."""

    def __init__(self, both):
        super().__init__()
        self.first, self.second, self.norm, self.both = nn.Linear(32, 32), nn.Linear(32, 32), nn.LayerNorm(32), both

    def forward(self, x):
        first, second = self.first(x)[:, :6].flip(1), self.second(x[:, 1:] if self.both else x)[:, :6].flip(1)
        return self.norm(first + (second if self.both else x[:, 2:]))


class Twice(nn.Module):
    """Moved before and behind a norm, so that there are two orders to be put together."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(32, 32), nn.Linear(32, 32), nn.LayerNorm(32)

    def forward(self, x):
        return self.second(self.norm(self.first(x).roll(1, 1)).roll(2, 1))


@needs_native
def test_one_order_upon_another():
    model, x = Twice().eval(), torch.randn(2, 8, 32)
    same(lowered(model, (x,), "float32")[1], model, x, "float32")


@needs_native
@pytest.mark.parametrize("both", [False, True])
def test_a_part_is_not_taken_for_the_whole(both):
    model, x = Cut(both).eval(), torch.randn(1, 8, 32)
    same(lowered(model, (x,), "float32")[1], model, x, "float32")


@needs_native
def test_with_the_engine_in_other_sizes(at_once):
    at_once("float32")
    torch.manual_seed(3)
    model = Model().eval()
    plain = copy.deepcopy(model)
    assert settle(model, torch.randn(1, 8, 8, 32)) is not None
    for size in ((1, 8, 8), (3, 8, 8), (1, 12, 8), (1, 8, 8)):
        x = torch.randn(*size, 32)
        with torch.inference_mode():
            made = model(x)
            own = plain(x)
        assert error(made, own) < LIMIT["float32"]


MOVES = {
    "permute": lambda x, a, b: x.transpose(a % (x.dim() - 1), b % (x.dim() - 1)),
    "roll": lambda x, a, b: x.roll(a, b % (x.dim() - 1)),
    "flip": lambda x, a, b: x.flip(a % (x.dim() - 1)),
    "cut": lambda x, a, b: x[a % 2 :, ..., :],
    "step": lambda x, a, b: x[:: 1 + a % 2],
    "flat": lambda x, a, b: x.flatten(0, -2),
    "fold": lambda x, a, b: x.reshape(-1, 2, x.shape[-1]) if x.numel() // x.shape[-1] % 2 == 0 else x,
    "cat": lambda x, a, b: torch.cat([x, x[a % 2 :]], 0),
    "wide": lambda x, a, b: torch.cat([x, x], -1),
    "pad": lambda x, a, b: F.pad(x, (0, 0, a % 2, b % 2)),
    "axis": lambda x, a, b: x.unsqueeze(0),
    "break": lambda x, a, b: x.roll(a, -1),
    "columns": lambda x, a, b: x.transpose(-1, -2),
}
BREAKING = {"break", "columns", "pad", "cut", "step"}
"""What may tear rows apart, put in zeros, or leave nothing."""

STEPS = st.lists(st.tuples(st.sampled_from(sorted(MOVES)), st.integers(0, 4), st.integers(0, 4)), max_size=6)


class Recorded:
    """A tensor, and the node of a graph that makes it."""

    def __init__(self, value, node):
        self.value, self.node = value, node
        node.meta["example_value"] = value

    @property
    def shape(self):
        return self.value.shape

    def dim(self):
        return self.value.dim()

    def numel(self):
        return self.value.numel()

    def __getitem__(self, key):
        return Recorded(self.value[key], self.node.graph.call_function(operator.getitem, (self.node, key)))

    def __getattr__(self, name):
        def call(*args):
            return Recorded(getattr(self.value, name)(*args), self.node.graph.call_method(name, (self.node, *args)))

        return call

    @classmethod
    def __torch_function__(cls, function, _, args=(), kwargs=None):
        if not isinstance(args[0], (list, cls)):
            return NotImplemented
        parts = args[0] if isinstance(args[0], list) else [args[0]]
        nodes, values = [part.node for part in parts], [part.value for part in parts]
        if args[0] is parts[0]:
            nodes, values = nodes[0], values[0]
        node = parts[0].node.graph.call_function(function, (nodes, *args[1:]), kwargs)
        return cls(function(values, *args[1:], **(kwargs or {})), node)


def applied(x, steps):
    for name, a, b in steps:
        x = MOVES[name](x, a, b)
    return x


@given(STEPS)
def test_orders_are_what_the_moves_do(steps):
    x = torch.randn(3, 2, 4, 5)
    made = applied(Recorded(x, torch.fx.Graph().placeholder("x")), steps)
    rows = rows_of(made.node)
    if rows is None:
        assert {name for name, _, _ in steps} & BREAKING
        return
    index = torch.arange(24) if rows.index is None else rows.index.long()
    assert torch.equal(x.reshape(-1, 5)[index].reshape(made.shape), made.value)
    if not rows.copies:
        assert made.value.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def called(function, *args):
    """The call of a function or, by its name, of a method, with its result, in the graph of what it is given."""
    values, nodes = ([getattr(arg, kind, arg) for arg in args] for kind in ("value", "node"))
    graph = nodes[0].graph
    if isinstance(function, str):
        return Recorded(getattr(values[0], function)(*values[1:]), graph.call_method(function, tuple(nodes)))
    return Recorded(function(*values), graph.call_function(function, tuple(nodes)))


def moved(x, middle):
    return called("reshape", called("transpose", called("reshape", x, (2, *middle, 8)), 1, 2), (2, 12, 8))


WORKS = {
    "linear": lambda x, w, b: called(F.linear, x, w, b),
    "norm": lambda x, w, b: called(F.layer_norm, x, (8,), b, None),
    "gelu": lambda x, w, b: called(F.gelu, x),
    "mean": lambda x, w, b: called(torch.add, x, called("mean", x, 1, True)),
    "roll": lambda x, w, b: called(torch.roll, x, 5, 1),
    "back": lambda x, w, b: called(torch.roll, x, -5, 1),
    "fold": lambda x, w, b: moved(x, (3, 4)),
    "unfold": lambda x, w, b: moved(x, (4, 3)),
    "pad": lambda x, w, b: called("narrow", called(F.pad, x, (0, 0, 0, 2)), 1, 1, 12),
    "double": lambda x, w, b: called("narrow", called("reshape", called("reshape", x, (12, 2, 8)), (2, 12, 8)), 1, 0, 12),
}
PLACES = st.integers(0, 99)


@given(st.lists(st.one_of(st.tuples(st.sampled_from(sorted(WORKS)), PLACES), st.tuples(PLACES, PLACES)), max_size=14))
def test_any_graph_answers_as_before(steps):
    torch.manual_seed(len(steps))
    graph = torch.fx.Graph()
    x, w, b = (Recorded(torch.randn(size), graph.placeholder(name)) for name, size in
               (("x", (2, 12, 8)), ("w", (8, 8)), ("b", (8,))))  # fmt: skip
    made = [x]
    for first, second in steps:
        one = made[-1 - second % min(len(made), 2)]  # chains, most of the time
        if isinstance(first, str):
            made.append(WORKS[first](one, w, b))
        else:
            made.append(called(torch.add, one, made[first % len(made)]))
    results = [made[len(made) // 2], made[-1]]
    graph.output(tuple(each.node for each in results))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "FEWEST_COLUMNS", 4)
        order.keep_order(graph)
    graph.lint()
    answered = torch.fx.GraphModule(nn.Module(), graph)(x.value, w.value, b.value)
    for got, each in zip(answered, results, strict=True):
        torch.testing.assert_close(got, each.value, rtol=1e-4, atol=1e-4)
