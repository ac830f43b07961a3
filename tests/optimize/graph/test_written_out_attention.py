# SPDX-License-Identifier: Apache-2.0
"""Attention that is written out, in the forms that models have, becomes the operator, and gives the model's own answers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slipstream.optimize.graph import lower
from slipstream.optimize.graph.capturing import capture
from slipstream.optimize.options import Options
from tests.optimize.graph.conftest import needs_native, settle
from tests.optimize.judging import LIMIT, error

pytestmark = needs_native

LEAST = torch.finfo(torch.float32).min


def turned(k):
    return k.transpose(-1, -2)


def weigh(scores, v):
    return F.softmax(scores, dim=-1) @ v


def fold(x):
    return x.reshape(-1, *x.shape[2:])


def divided(q, k, v, seen, bias):
    return weigh(q @ turned(k) / math.sqrt(q.shape[-1]) + bias, v)


def scaled_query(q, k, v, seen, bias):
    scores = torch.matmul(q * 0.3, turned(k)).masked_fill(~seen, -math.inf)
    return torch.matmul(nn.Softmax(dim=-1)(scores), v)


def scaled_both(q, k, v, seen, bias):
    root = torch.sqrt(torch.tensor(q.shape[-1], dtype=torch.float) * 3)
    scores = (q / 2.0) @ (k.permute(0, 1, 3, 2) / root) + bias
    return weigh(scores.masked_fill(seen.logical_not(), LEAST), v)


def where(q, k, v, seen, bias):
    scores = torch.where(seen, 0.2 * (q @ turned(k)), torch.full([], LEAST))
    return scores.float().softmax(-1, dtype=torch.float32).to(q.dtype) @ v


def where_hidden(q, k, v, seen, bias):
    return weigh(torch.where(~seen, -1e9, bias + q @ k.mT), v)


def additive(q, k, v, seen, bias):
    mask = torch.zeros(seen.shape).masked_fill(~seen, LEAST)
    scores = q @ turned(k)
    scores += bias
    return weigh(scores + mask, v)


def subtracted(q, k, v, seen, bias):
    scores = (q @ turned(k) + bias) / math.sqrt(q.shape[-1])
    return weigh(scores - 1e4 * (1.0 - seen.float()), v)


def twice_hidden(q, k, v, seen, bias):
    scores = (q @ turned(k)).masked_fill(~seen, -math.inf)
    return weigh(scores.masked_fill(torch.ones(q.shape[2], k.shape[2]).triu(k.shape[2] - 1).bool(), -math.inf) * 0.1, v)


def three_axes(q, k, v, seen, bias):
    batch, heads, length, _ = q.shape
    scores = torch.bmm(fold(q), turned(fold(k)) / 5.0) + bias.expand(batch, -1, -1, -1).reshape(-1, length, k.shape[2])
    scores = scores.view(batch, heads, length, -1).masked_fill(~seen, LEAST)
    weights = F.softmax(scores, dim=-1).view(batch * heads, length, -1)
    return torch.bmm(weights, fold(v)).view(batch, heads, length, -1)


def no_heads(q, k, v, seen, bias):
    hidden = (~seen).expand(q.shape[0], q.shape[1], q.shape[2], -1)
    scores = torch.bmm(fold(q), fold(k).transpose(1, 2)).masked_fill(fold(hidden), LEAST)
    return (F.softmax(scores, dim=2) @ fold(v)).unflatten(0, q.shape[:2])


def shared_heads(q, k, v, seen, bias):
    k, v = (x[:, :2, None].expand(-1, 2, 2, -1, -1).reshape(x.shape) for x in (k, v))
    return weigh(q @ k.transpose(2, 3) * 0.25 + bias, v)


FORMS = [
    divided, scaled_query, scaled_both, where, where_hidden, additive, subtracted, twice_hidden, three_axes, no_heads,
    shared_heads,
]  # fmt: skip


class Attending(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(64, size) for size in (64, 64, 48))
        self.form = form

    def forward(self, x, y, seen, bias):
        q, k, v = (part(z).unflatten(-1, (4, -1)).transpose(1, 2) for part, z in
                   ((self.query, x), (self.key, y), (self.value, y)))  # fmt: skip
        return self.form(q, k, v, seen, bias).transpose(1, 2).flatten(2)


class All(nn.Module):
    def __init__(self, forms):
        super().__init__()
        self.parts = nn.ModuleList(map(Attending, forms))

    def forward(self, *given):
        return tuple(part(*given) for part in self.parts)


def drawn(queries, keys, model_dtype=torch.float32, hidden_row=False):
    torch.manual_seed(queries + keys)
    seen = torch.ones(2, 1, queries, keys, dtype=torch.bool)
    seen[1, :, :, keys // 2 + 1 :] = False
    if hidden_row:
        seen[0, :, 0] = False
    x, y, bias = torch.randn(2, queries, 64), torch.randn(2, keys, 64), torch.randn(1, 4, queries, keys)
    return x.to(model_dtype), y.to(model_dtype), seen, bias.to(model_dtype)


def lowered(model, given, dtype):
    """The lowered graph, its answers, and the names of its operations."""
    with torch.inference_mode():
        captured = capture.capture(model, given, {}, dynamic=False)
        program = lower.lower(captured.graph, captured.inputs, Options(getattr(torch, dtype), graph=True), captured.own)
        results = program.fast(*captured.inputs)
    return program, results, names_in(program.fast.graph)


def names_in(graph):
    return [str(getattr(node.target, "kind", getattr(node.target, "__name__", node.target))) for node in graph.nodes]


def answers(model, given):
    with torch.inference_mode():
        return model(*given)


@pytest.mark.parametrize(("queries", "keys"), [(13, 21), (1, 5)])
@pytest.mark.parametrize("dtype", LIMIT)
def test_every_form_is_the_operator(dtype, queries, keys):
    model, given = All(FORMS).eval(), drawn(queries, keys, hidden_row=False)
    _, results, names = lowered(model, given, dtype)
    assert (names.count("attention"), names.count("softmax")) == (len(FORMS), 0)
    for form, got, wanted in zip(FORMS, results, answers(model, given), strict=True):
        assert (got.dtype, got.shape, got.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
        assert error(got, wanted) < LIMIT[dtype], form.__name__


def test_layers_that_share_a_mask_ask_once_what_it_hides():
    model = All([where_hidden, where_hidden, where_hidden]).eval()
    for given in (drawn(9, 9), (*drawn(9, 9)[:2], torch.ones(2, 1, 9, 9, dtype=torch.bool), torch.randn(1, 4, 9, 9))):
        _, results, names = lowered(model, given, "float32")
        assert (names.count("attention"), names.count("what_hides")) == (3, 1)
        for got, wanted in zip(results, answers(model, given), strict=True):
            assert error(got, wanted) < LIMIT["float32"]


def test_a_bfloat16_model_stays_one():
    forms = [divided, scaled_query, where, where_hidden, three_axes, no_heads, shared_heads]  # the others mix dtypes
    model, given = All(forms).eval().bfloat16(), drawn(9, 9, torch.bfloat16)
    _, results, names = lowered(model, given, "float32")
    assert names.count("attention") == len(forms)
    exact = answers(model.float(), [x.float() if x.is_floating_point() else x for x in given])
    for form, got, wanted in zip(forms, results, exact, strict=True):
        assert got.dtype is torch.bfloat16
        assert error(got, wanted) < LIMIT["bfloat16"], form.__name__


def test_the_least_float32_is_infinite_in_bfloat16():
    model, given = All([where]).eval().bfloat16(), drawn(7, 11, torch.bfloat16, hidden_row=True)
    _, (got,), names = lowered(model, given, "bfloat16")
    (wanted,) = answers(model, given)
    assert "attention" in names
    assert torch.isnan(wanted[0, 0]).all() and torch.equal(torch.isnan(got), torch.isnan(wanted))


@pytest.mark.parametrize("dtype", LIMIT)
def test_a_row_that_sees_nothing_is_what_a_softmax_makes_of_it(dtype):
    """Hidden by minus infinity it is not a number; by a finite one, the mean of the values."""
    model, given = All(FORMS).eval(), drawn(7, 11, hidden_row=True)
    _, results, names = lowered(model, given, dtype)
    assert names.count("attention") == len(FORMS)
    for form, got, wanted in zip(FORMS, results, answers(model, given), strict=True):
        assert torch.equal(torch.isnan(got), torch.isnan(wanted)), form.__name__
        assert bool(torch.isnan(got[0, 0]).all()) is (form in (scaled_query, twice_hidden)), form.__name__
        limit = max(LIMIT[dtype], 1e-3 if form is subtracted else 0)  # scores near −1e4 have three digits behind the point
        assert error(torch.nan_to_num(got), torch.nan_to_num(wanted)) < limit, form.__name__


def kept_weights(q, k, v, seen, bias):
    weights = F.softmax(q @ turned(k) + bias, dim=-1)
    return torch.cat((weights @ v, weights.mean(-1, keepdim=True)), -1)


def kept_scores(q, k, v, seen, bias):
    scores = q @ turned(k)
    return weigh(scores, v) + scores.mean(-1, keepdim=True)


def other_axis(q, k, v, seen, bias):
    return F.softmax(q @ turned(k) + bias, dim=-2) @ v


def other_sum(q, k, v, seen, bias):
    return weigh((q @ turned(k)).clamp(-1, 1), v)


def filled_with_little(q, k, v, seen, bias):
    return weigh((q @ turned(k)).masked_fill(~seen, -3.0), v)


def learned_scale(q, k, v, seen, bias):
    return weigh(q @ turned(k) * bias[:, :, :1, :1], v)


def two_batches(q, k, v, seen, bias):
    return weigh(q @ turned(k[:1]), v)


def test_what_is_no_attention_or_read_by_others_stays():
    forms = [kept_weights, kept_scores, other_axis, other_sum, filled_with_little, learned_scale, two_batches]
    model, given = All(forms).eval(), drawn(6, 8)
    _, results, names = lowered(model, given, "float32")
    assert (names.count("attention"), names.count("softmax")) == (0, len(forms))
    for form, got, wanted in zip(forms, results, answers(model, given), strict=True):
        assert error(got, wanted) < LIMIT["float32"], form.__name__


@pytest.mark.parametrize("form", [additive, three_axes, scaled_query])
def test_sizes_may_vary(at_once, form):
    model = Attending(form).eval()
    inputs = [drawn(queries, keys) for queries, keys in ((5, 9), (9, 12), (7, 5), (12, 33), (33, 12))]
    expected = [answers(model, given) for given in inputs]
    at_once("float32")
    for given in inputs[:2]:
        root = settle(model, *given)
    assert root.ways
    assert all("softmax" not in names_in(way.program.lowered.fast.graph) for way in root.ways)
    for _ in range(2):
        for given, wanted in zip(inputs, expected, strict=True):
            assert error(answers(model, given), wanted) < LIMIT["float32"]
    assert all(way.program.broken is None for way in root.ways)
