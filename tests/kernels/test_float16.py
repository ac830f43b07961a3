# SPDX-License-Identifier: Apache-2.0
"""Attention, and products of two activations, in float16 at the level that has it: what does not fit is multiplied otherwise,
and alone.

Linear: test_linear.py; convolutions: test_convolution_last_scaled.py and test_winograd_scaled.py."""

import pytest
import torch

from slipstream.kernels.attention import attention
from slipstream.kernels.batched_matmul import batched_matmul

LIMIT = 8e-3
INF, NAN = float("inf"), float("nan")

pytestmark = pytest.mark.usefixtures("float16_level")


def error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


def exact(q, k, v):
    scores = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ v.double()


def heads(queries, keys, depth=40, width=33):
    torch.manual_seed(queries)
    return tuple(torch.randn(2, 3, *size).bfloat16() for size in ((queries, depth), (keys, depth), (keys, width)))


@pytest.mark.parametrize(("queries", "keys"), [(48, 48), (75, 300), (64, 1100)])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_attention_of_any_magnitude(queries, keys, scale):
    q, k, v = heads(queries, keys)
    assert error(attention(q, k, v * scale), exact(q, k, v * scale)) <= LIMIT
    assert error(attention(q * scale, k / scale, v), exact(q * scale, k / scale, v)) <= LIMIT


@pytest.mark.parametrize("bad", [NAN, INF, 2.0**70])
def test_a_query_that_does_not_fit_reaches_no_other(bad):
    q, k, v = heads(60, 90)
    whole = attention(q, k, v)
    q[1, 2, 17] *= bad
    q[0, 0, 59] *= bad
    y = attention(q, k, v)
    expected = exact(q, k, v)
    others = torch.ones(60, dtype=torch.bool)
    others[[17, 59]] = False  # in float32 in all heads of its batch
    assert torch.equal(y[:, :, others], whole[:, :, others])
    finite = expected.isfinite()
    assert torch.equal(y.isnan(), expected.isnan())
    assert error(y[finite], expected[finite]) <= LIMIT


@pytest.mark.parametrize("which", ["key", "value"])
@pytest.mark.parametrize("bad", [NAN, INF, 2.0**60])
def test_keys_and_values_that_do_not_fit(which, bad):
    q, k, v = heads(60, 90)
    (k if which == "key" else v)[1, 2, 30, 5] = bad
    y, expected = attention(q, k, v), exact(q, k, v)
    finite = expected.isfinite()
    assert torch.equal(y.isnan(), expected.isnan())
    assert error(y[finite], expected[finite]) <= LIMIT
    assert error(y[0], expected[0]) <= LIMIT


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("bad", "columns"), [(None, 0), (NAN, 1), (INF, 1), (2.0**60, 1)])
def test_products_of_two_activations(turned, bad, columns):
    torch.manual_seed(1)
    a, b = torch.randn(3, 70, 100).bfloat16(), torch.randn(3, 100, 45).bfloat16()
    if turned:
        b = b.transpose(1, 2).contiguous().transpose(1, 2)
    if bad is not None:
        b[1, 7, 3] = bad
    y, expected = batched_matmul(a, b, out_dtype=torch.float32), a.double() @ b.double()
    clean = torch.ones(3, 45, dtype=torch.bool)
    clean[1, 3] = not columns
    clean = clean[:, None].expand(y.shape)
    assert error(y[clean], expected[clean]) <= 1.2e-3
    assert torch.equal(y[~clean].isnan(), expected[~clean].isnan())
