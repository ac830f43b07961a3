# SPDX-License-Identifier: Apache-2.0
"""`linear_int8` is its plain-torch twin: the same integer sums at every level, the same floats within its docstring's bound."""

import concurrent.futures
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.kernels import linear_int8 as L
from slipstream.kernels import native
from slipstream.kernels.post_op import POST_OPS

DTYPES = [torch.float32, torch.bfloat16]
STATIC = [L.Static(0.02), L.Static(0.013, -20), L.Static(0.02, 100, torch.uint8), L.Static(0.5, 255, torch.uint8)]
EVERY = [*L.ACTIVATIONS, *STATIC]

by_level = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_weight(n, k, g, *, zero_points=False):
    """int8 over its whole range, -128 too, which `quantize_weight` never gives."""
    weight = torch.randint(-128, 128, (n, k), generator=g).to(torch.int8)
    scales = torch.rand(n, generator=g) / 100 + 1e-3
    return weight, scales, torch.randint(-128, 128, (n,), generator=g, dtype=torch.int32) if zero_points else None


@st.composite
def problems(draw):
    m = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 12, 13, 16, 17, 31, 33, 50]))
    return m, draw(st.integers(1, 100)), draw(st.integers(0, 200)), torch.Generator().manual_seed(draw(st.integers(0, 2**31)))


@by_level
@given(problem=problems(), x_dtype=st.sampled_from(DTYPES), activation=st.sampled_from(EVERY), zero_points=st.booleans())
def test_sums_are_those_of_the_twin(level, problem, x_dtype, activation, zero_points):
    m, n, k, g = problem
    x = (torch.randn(m, k, generator=g) * 10 ** torch.empty(m, 1).uniform_(-6, 6, generator=g)).to(x_dtype)
    weight, scales, zeros = random_weight(n, k, g, zero_points=zero_points)
    y = L.linear_int8(x, L.pack(weight, scales, zero_points=zeros), activation=activation, out_dtype=torch.float32)
    # Nothing is added after the sums, so the floats are equal too: one sum, twice multiplied.
    rest = {"zero_points": zeros, "activation": activation, "out_dtype": torch.float32}
    assert torch.equal(y, L.plain_linear_int8(x, weight, scales, **rest))


@by_level
@given(
    problem=problems(),
    dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 3),
    activation=st.sampled_from(EVERY),
    post_op=st.sampled_from(POST_OPS),
    operands=st.tuples(*[st.booleans()] * 4),
)
def test_equals_the_twin(level, problem, dtypes, activation, post_op, operands):
    m, n, k, g = problem
    x_dtype, o_dtype, out_dtype = dtypes
    x = torch.randn(m, k, generator=g).to(x_dtype)
    weight, scales, _ = random_weight(n, k, g)
    bias = torch.randn(n, generator=g).to(o_dtype) if operands[0] else None
    multiplier = torch.randn(m, n, generator=g).to(o_dtype) if operands[1] else None
    residual = torch.randn(m, n, generator=g).to(o_dtype) if operands[2] else None
    rest = {"post_op": post_op, "multiplier": multiplier, "residual": residual, "activation": activation}
    rest["residual_first"] = operands[3]
    y = L.linear_int8(x, L.pack(weight, scales), bias, **rest, out_dtype=out_dtype)
    assert (y.shape, y.dtype, y.is_contiguous()) == ((m, n), out_dtype, True)
    expected = L.plain_linear_int8(x, weight, scales, bias, **rest, out_dtype=torch.float32)
    before = L.plain_linear_int8(x, weight, scales, bias, activation=activation, out_dtype=torch.float32)
    largest = max((t.abs().max().item() for t in (expected, before, bias, residual) if t is not None and t.numel()), default=0)
    factor = multiplier.abs().max().item() if multiplier is not None and multiplier.numel() else 1
    bound = 1e-6 if out_dtype is torch.float32 else 2**-8
    assert torch.allclose(y.float(), expected, rtol=bound, atol=max(1, factor) * (4e-7 + bound * largest))


@pytest.mark.parametrize("k", [1, 63, 768, 2053])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_products_do_not_saturate(level, k, sign):
    """255 · 127 · k and 255 · -128 · k, where 16-bit sums of pairs would have been cut."""
    x = torch.full((5, k), 1e9)
    weight = torch.full((40, k), 127 if sign > 0 else -128, dtype=torch.int8)
    packed = L.pack(weight, torch.ones(40))
    y = L.linear_int8(x, packed, activation=L.Static(1.0, 0, torch.uint8))
    assert torch.equal(y, torch.full((5, 40), float(255 * k * int(weight[0, 0]))))


def test_the_deepest_sum_fits(level):
    """255 · 255 · 32768, the largest that there can be."""
    k = L.DEEPEST
    weight, zero_points = torch.full((1, k), 127, dtype=torch.int8), torch.full((1,), -128, dtype=torch.int32)
    packed = L.pack(weight, torch.ones(1), zero_points=zero_points)
    y = L.linear_int8(torch.ones(1, k), packed, activation=L.Static(2.0**-20, 0, torch.uint8))
    assert y.item() == 2.0**-20 * 255 * 255 * k


def test_it_approximates_the_float_product(level):
    g = torch.Generator().manual_seed(1)
    x, weight = torch.randn(20, 300, generator=g), torch.randn(50, 300, generator=g)
    packed = L.pack(*L.quantize_weight(weight))
    exact = x.double() @ weight.double().T
    for activation in (*L.ACTIVATIONS, L.Static(4.5 / 127)):
        y = L.linear_int8(x, packed, activation=activation)
        assert (y.double() - exact).norm() / exact.norm() < 0.015


def test_asymmetric_has_one_bit_more_where_nothing_is_negative(level):
    g = torch.Generator().manual_seed(1)
    x, (weight, scales, _) = torch.randn(20, 300, generator=g).relu(), random_weight(50, 300, g)
    exact, packed = x.double() @ (weight.double() * scales.double()[:, None]).T, L.pack(weight, scales)
    for way in ("per_token", "per_tensor"):
        symmetric, asymmetric = (L.linear_int8(x, packed, activation=f"{way}{suffix}") for suffix in ("", "_asymmetric"))
        assert (asymmetric.double() - exact).norm() < 0.6 * (symmetric.double() - exact).norm()


@by_level
@given(
    problem=problems(),
    activation=st.sampled_from(EVERY),
    bad=st.sampled_from([math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 1e-45, -1e-39, 0.0]),
    whole=st.booleans(),
)
def test_a_bad_row_is_defined_and_touches_no_other(level, problem, activation, bad, whole):
    m, n, k, g = problem
    m, k = m + 2, k + 1
    x = torch.randn(m, k, generator=g)
    weight, scales, _ = random_weight(n, k, g)
    packed = L.pack(weight, scales)
    rest = torch.ones(m, dtype=torch.bool)
    rest[1] = False
    clean = L.linear_int8(x[rest], packed, activation=activation)
    x[1, slice(None) if whole else k // 2] = bad
    y = L.linear_int8(x, packed, activation=activation)
    expected = L.plain_linear_int8(x, weight, scales, activation=activation)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(0), expected.nan_to_num(0))
    static = isinstance(activation, L.Static)
    assert y[1].isnan().all() or math.isfinite(bad) or (static and not math.isnan(bad))
    if "per_tensor" not in str(activation) or not math.isfinite(bad):
        assert torch.equal(y[rest], clean)


def test_rows_without_a_value_give_the_bias(level):
    g = torch.Generator().manual_seed(2)
    weight, scales, zeros = random_weight(37, 50, g, zero_points=True)
    packed, bias = L.pack(weight, scales, zero_points=zeros), torch.randn(37, generator=g)
    for x in (torch.zeros(4, 50), torch.full((4, 50), 1e-40)):
        for activation in EVERY:
            assert torch.equal(L.linear_int8(x, packed, bias, activation=activation), bias.expand(4, 37))


def test_neither_threads_nor_the_rows_beside_change_a_row(level):
    g = torch.Generator().manual_seed(3)
    m, n, k = (21, 70, 130) if level in (native.EMULATED, "baseline") else (300, 700, 520)
    x, (weight, scales, zeros) = torch.randn(m, k, generator=g), random_weight(n, k, g, zero_points=True)
    packed, before = L.pack(weight, scales, zero_points=zeros), torch.get_num_threads()
    try:
        for activation in EVERY:
            torch.set_num_threads(1)
            alone = L.linear_int8(x, packed, activation=activation)
            torch.set_num_threads(2)
            assert torch.equal(L.linear_int8(x, packed, activation=activation), alone)
            if "per_tensor" not in str(activation):
                assert torch.equal(L.linear_int8(x[7:12], packed, activation=activation), alone[7:12])
    finally:
        torch.set_num_threads(before)


def test_concurrent_calls_give_the_same_bits(level):
    g = torch.Generator().manual_seed(4)
    x, (weight, scales, _) = torch.randn(9, 64, generator=g), random_weight(48, 64, g)
    packed = L.pack(weight, scales)
    calls = 40 if level in (native.EMULATED, "plain") else 2500
    expected = [L.linear_int8(x, packed, activation=activation) for activation in L.ACTIVATIONS]

    def call(i):
        return torch.equal(L.linear_int8(x, packed, activation=L.ACTIVATIONS[i % 4]), expected[i % 4])

    def work(_):
        return all(call(i) for i in range(calls))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_strides_do_not_matter(level):
    g = torch.Generator().manual_seed(5)
    weight, scales, _ = random_weight(40, 48, g)
    packed = L.pack(weight, scales)
    base = torch.randn(6, 9, 96, generator=g)
    for x in (
        base[..., :48], base[:, ::2, :48], base.transpose(0, 1)[..., :48], base[..., ::2], torch.randn(48), base[:1, :1, 48:],
        torch.randn(1, 48).expand(5, 48), base.bfloat16()[..., 1:49], base[:0, :, :48],
    ):  # fmt: skip
        for activation in ("per_token", "per_tensor"):
            expected = L.plain_linear_int8(x, weight, scales, activation=activation)
            assert torch.equal(L.linear_int8(x, packed, activation=activation), expected)
    x = base[0, :, :48]
    for strided in (weight.T.contiguous().T, torch.cat([weight, weight], 1)[:, :48]):
        assert torch.equal(L.linear_int8(x, L.pack(strided, scales)), L.linear_int8(x, packed))


@pytest.mark.parametrize(("m", "n", "k"), [(0, 5, 7), (4, 5, 0), (3, 0, 4), (0, 0, 0)])
def test_empty(level, m, n, k):
    g = torch.Generator().manual_seed(6)
    weight, scales, _ = random_weight(n, k, g)
    for activation in EVERY:
        y = L.linear_int8(torch.randn(m, k), L.pack(weight, scales), torch.ones(n), activation=activation)
        assert torch.equal(y, torch.ones(m, n))


def test_weights_are_quantized_by_the_formula():
    weight = torch.tensor([[127.0, -63.5, 0.5, 1.5], [0.0, 0.0, 0.0, 0.0], [-2.54, 1.27, 0.0, 2.54], [1e-45, 0, 0, 0]])
    integers, scales = L.quantize_weight(weight)
    assert integers.tolist() == [[127, -64, 0, 2], [0] * 4, [-127, 64, 0, 127], [0] * 4]  # -63.5, 0.5 and 1.5 go to even
    torch.testing.assert_close(scales, torch.tensor([1.0, 1.0, 0.02, 1.0]))
    integers, scales = L.quantize_weight(torch.randn(5, 0))
    assert integers.shape == (5, 0) and scales.tolist() == [1.0] * 5
    g = torch.Generator().manual_seed(7)
    weight = torch.randn(30, 40, generator=g).bfloat16()
    integers, scales = L.quantize_weight(weight)
    assert ((integers * scales[:, None] - weight.float()).abs() <= scales[:, None] * 0.50001).all()


def test_bad_input_names_the_argument():
    g = torch.Generator().manual_seed(8)
    weight, scales, _ = random_weight(4, 6, g)
    packed = L.pack(weight, scales)
    x = torch.randn(2, 6)
    for message, call in {
        "weight of shape": lambda: L.pack(weight[0], scales),
        "see quantize_weight": lambda: L.pack(weight.float(), scales),
        "scales of shape": lambda: L.pack(weight, scales[:3]),
        "zero_points of shape": lambda: L.pack(weight, scales, zero_points=torch.zeros(4)),
        "zero_points: must be": lambda: L.pack(weight, scales, zero_points=torch.full((4,), 128, dtype=torch.int32)),
        "weight of 32769 in_features": lambda: L.pack(torch.zeros(1, 32769, dtype=torch.int8), scales[:1]),
        "weight: holds NaN": lambda: L.quantize_weight(torch.tensor([[math.nan]])),
        "weight torch.float64": lambda: L.quantize_weight(torch.zeros(2, 2).double()),
        "activation per_row": lambda: L.linear_int8(x, packed, activation="per_row"),
        "post_op mish": lambda: L.linear_int8(x, packed, post_op="mish"),
        "x torch.float64": lambda: L.linear_int8(x.double(), packed),
        "scale 0.0": lambda: L.Static(0.0),
        "scale nan": lambda: L.Static(math.nan),
        "zero_point 128": lambda: L.Static(1.0, 128),
        "zero_point -1": lambda: L.Static(1.0, -1, torch.uint8),
        "dtype torch.int32": lambda: L.Static(1.0, 0, torch.int32),
    }.items():
        with pytest.raises(UsageError, match=message):
            call()
    with pytest.raises(RuntimeError):
        L.linear_int8(torch.randn(2, 5), packed)
    with pytest.raises(RuntimeError, match="gradient"):
        L.linear_int8(x.requires_grad_(), packed)


@pytest.mark.skipif(not native.available(), reason="the operators are native")
def test_native_checks_its_operands():
    weight, scales, _ = random_weight(4, 6, torch.Generator().manual_seed(9))
    packed, x = L.pack(weight, scales), torch.randn(2, 6)
    for argument, operands in {"bias": {"bias": torch.randn(5)}, "residual": {"residual": torch.randn(3, 4)}}.items():
        with pytest.raises(RuntimeError, match=argument):
            L.linear_int8(x, packed, **operands)
    with pytest.raises(RuntimeError, match="packed"):
        torch.ops.slipstream.linear_int8(x, packed.data[:-1], 4, 6, 0, 0.0, 0, None, 0, None, None, False)
    with pytest.raises(RuntimeError, match="activation"):
        torch.ops.slipstream.linear_int8(x, packed.data, 4, 6, 5, 0.0, 0, None, 0, None, None, False)


@pytest.mark.skipif(not native.available(), reason="the operators are native")
def test_operators_are_seen_by_export():
    weight, scales, _ = random_weight(40, 70, torch.Generator().manual_seed(10))

    class Model(torch.nn.Module):
        def forward(self, x):
            packed = torch.ops.slipstream.pack_linear_int8(weight, scales, None)
            return torch.ops.slipstream.linear_int8(x, packed, 40, 70, 0, 0.0, 0, None, 1, None, None, True)

    x = torch.randn(3, 70)
    with torch.no_grad():
        exported = torch.export.export(Model(), (x,), strict=False)
        assert torch.equal(exported.module()(x), Model()(x))
    arguments = (x, torch.ops.slipstream.pack_linear_int8(weight, scales, None), 40, 70, 0, 0.0, 0, None, 1, None, None, True)
    torch.library.opcheck(torch.ops.slipstream.linear_int8.default, arguments, test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(torch.ops.slipstream.pack_linear_int8.default, (weight, scales, None), test_utils="test_faketensor")
