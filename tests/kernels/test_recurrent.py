# SPDX-License-Identifier: Apache-2.0
"""`recurrent` is nn.LSTM, nn.GRU and nn.RNN: any sizes, lengths, states and level, within its docstring's bound of float64."""

import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from slipstream.errors import UsageError
from slipstream.kernels import native
from slipstream.kernels.recurrent import KINDS, pack, recurrent

DTYPES = [torch.float32, torch.bfloat16]
BOUND = {torch.float32: 1e-6, torch.bfloat16: 1e-2}

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def layer(kind, inputs, units, layers=1, **settings):
    if kind == "lstm":
        return nn.LSTM(inputs, units, layers, **settings).eval()
    settings.pop("proj_size", None)
    if kind == "gru":
        return nn.GRU(inputs, units, layers, **settings).eval()
    return nn.RNN(inputs, units, layers, nonlinearity=kind.removeprefix("rnn_"), **settings).eval()


def packed(module, dtype=torch.float32):
    return pack(
        module.mode.lower(), module._flat_weights, layers=module.num_layers, bidirectional=module.bidirectional,
        bias=module.bias, projected=module.proj_size > 0, dtype=dtype,
    )  # fmt: skip


@torch.no_grad()
def oracle(module, x, h0=None, c0=None):
    """The module in float64: (y, h[, c])."""
    hx = None if h0 is None else h0.double()
    if h0 is not None and module.mode == "LSTM":
        hx = hx, c0.double()
    try:
        y, states = module.double()(x.to(torch.float64), hx)
    finally:
        module.float()
    return (y, *states) if module.mode == "LSTM" else (y, states)


def error(y, expected):
    """Root mean square, relative where the numbers exceed one."""
    return ((y.double() - expected).norm() / max(expected.norm().item(), expected.numel() ** 0.5)).item()


def check(results, expected, bound):
    assert (results[2] is None) == (len(expected) == 2)
    for got, want in zip(results, expected, strict=False):
        assert got.shape == want.shape
        assert got.is_contiguous()
        assert error(got, want) <= bound


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(list(KINDS)), steps=st.integers(1, 6), batch=st.integers(1, 14), inputs=st.integers(1, 40),
    units=st.sampled_from([1, 2, 7, 31, 32, 33, 48, 65, 100]), layers=st.integers(1, 2), bidirectional=st.booleans(),
    bias=st.booleans(), projected=st.booleans(), states=st.booleans(), transposed=st.booleans(),
    dtype=st.sampled_from(DTYPES), in_dtype=st.sampled_from(DTYPES), seed=st.integers(0, 999),
)  # fmt: skip
def test_equals_float64(
    level, kind, steps, batch, inputs, units, layers, bidirectional, bias, projected, states, transposed, dtype,
    in_dtype, seed,
):  # fmt: skip
    torch.manual_seed(seed)
    outputs = (units + 1) // 2 if projected and kind == "lstm" and units > 1 else 0
    module = layer(kind, inputs, units, layers, bidirectional=bidirectional, bias=bias, proj_size=outputs)
    x = torch.randn(batch, steps, inputs).transpose(0, 1) if transposed else torch.randn(steps, batch, inputs)
    x, number = x.to(in_dtype), layers * (1 + bidirectional)
    h0 = torch.randn(number, batch, outputs or units).to(in_dtype) if states else None
    c0 = torch.randn(number, batch, units).to(in_dtype) if states and kind == "lstm" else None
    with torch.no_grad():
        results = recurrent(x, packed(module, dtype), h0, c0, out_dtype=torch.float32)
    check(results, oracle(module, x, h0, c0), BOUND[dtype])


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(list(KINDS)), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    layers=st.integers(1, 2), bidirectional=st.booleans(), projected=st.booleans(), states=st.booleans(),
    dtype=st.sampled_from(DTYPES), seed=st.integers(0, 999),
)  # fmt: skip
def test_packed_sequences(level, kind, lengths, layers, bidirectional, projected, states, dtype, seed):
    torch.manual_seed(seed)
    outputs = 11 if projected and kind == "lstm" else 0
    module = layer(kind, 9, 35, layers, bidirectional=bidirectional, proj_size=outputs)
    x = pack_sequence([torch.randn(length, 9) for length in sorted(lengths, reverse=True)])
    number = layers * (1 + bidirectional)
    h0 = torch.randn(number, len(lengths), outputs or 35) if states else None
    c0 = torch.randn(number, len(lengths), 35) if states and kind == "lstm" else None
    with torch.no_grad():
        results = recurrent(x.data, packed(module, dtype), h0, c0, batch_sizes=x.batch_sizes.tolist())
    y, *last = oracle(module, x, h0, c0)
    check(results, (y.data, *last), BOUND[dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_long_sequences_are_projected_in_pieces(level, kind):
    if level == native.EMULATED:
        pytest.skip("the emulated tiles are slow, and nothing here depends on the level")
    torch.manual_seed(0)
    module = layer(kind, 3, 450, bidirectional=True)
    x = torch.randn(40, 20, 3)
    with torch.no_grad():
        check(recurrent(x, packed(module)), oracle(module, x), 1e-6)


@pytest.mark.parametrize("steps, batch", [(0, 3), (4, 0), (0, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_empty(level, kind, steps, batch):
    h0, c0 = torch.randn(2, batch, 6), torch.randn(2, batch, 6)
    weights = packed(layer(kind, 5, 6, bidirectional=True))
    y, h, c = recurrent(torch.randn(steps, batch, 5), weights, h0, c0 if kind == "lstm" else None)
    assert y.shape == (steps, batch, 12)
    assert torch.equal(h, h0) if steps == 0 else h.shape == h0.shape
    assert c is None or (torch.equal(c, c0) if steps == 0 else c.shape == c0.shape)


@torch.no_grad()
def test_nan_and_infinity_stay_in_their_sequence(level):
    torch.manual_seed(1)
    for kind in KINDS:
        weights = packed(layer(kind, 8, 40))
        x = torch.randn(4, 5, 8)
        clean = recurrent(x, weights)[0]
        x[1, 2, 3], x[0, 4, 0] = float("nan"), float("inf")
        y = recurrent(x, weights)[0]
        assert torch.isnan(y[1:, 2]).any(-1).all()
        assert torch.equal(y[:, [0, 1, 3]], clean[:, [0, 1, 3]]) or level == "plain"
        assert torch.isfinite(y[:, [0, 1, 3]]).all()
        if kind != "rnn_relu":
            assert torch.isfinite(y[0, 4]).all()  # gates saturate


@torch.no_grad()
@pytest.mark.parametrize("projected", [0, 150])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_neither_threads_nor_neighbours_change_bits(level, bidirectional, projected):
    if level == native.EMULATED:
        pytest.skip("the emulated tiles are slow, and nothing here depends on the level")
    torch.manual_seed(2)
    module = layer("lstm", 24, 200, bidirectional=bidirectional, proj_size=projected)
    x = torch.randn(9, 6, 24)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(recurrent(x, packed(module, torch.bfloat16)))
        alone = recurrent(x[:, 3:4], packed(module, torch.bfloat16))
    finally:
        torch.set_num_threads(before)
    for result in results:
        for got, want, single in zip(result, results[0], alone, strict=True):
            assert torch.equal(got, want) or level == "plain"
            assert torch.equal(got[:, 3:4], single) or level == "plain"


@torch.no_grad()
def test_calls_from_several_threads_at_once():
    torch.manual_seed(3)
    weights, x = packed(layer("gru", 16, 150)), torch.randn(12, 3, 16)
    expected = recurrent(x, weights)[0]
    wrong = []

    def call():
        wrong.extend(i for i in range(50) if not torch.equal(recurrent(x, weights)[0], expected))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_dtype", DTYPES)
def test_result_has_the_dtype_asked_for(level, dtype, out_dtype):
    x = torch.randn(3, 2, 5, dtype=dtype)
    weights = packed(layer("lstm", 5, 8))
    assert [part.dtype for part in recurrent(x, weights, out_dtype=out_dtype)] == [out_dtype] * 3
    assert [part.dtype for part in recurrent(x, weights)] == [dtype] * 3


@pytest.mark.skipif(not native.available(), reason="the fake is the native operator's")
def test_fake_agrees():
    from torch._subclasses.fake_tensor import FakeTensorMode

    for kind in KINDS:
        weights = packed(layer(kind, 5, 8, 2, bidirectional=True))
        for x, sizes in ((torch.randn(3, 2, 5), []), (torch.randn(6, 5), [3, 2, 1])):
            arguments = ([*KINDS].index(kind), [5, 8, 0, 2, 2], False)
            real = torch.ops.slipstream.recurrent(x, weights.weights, weights.biases, None, None, sizes, *arguments)
            with FakeTensorMode() as mode:
                operands = [mode.from_tensor(operand) for operand in (x, weights.weights, weights.biases)]
                fake = torch.ops.slipstream.recurrent(*operands, None, None, sizes, *arguments)
            for one, other in zip(real, fake, strict=True):
                assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())


def test_bad_input_names_the_argument():
    module = layer("lstm", 5, 8)
    with pytest.raises(UsageError, match="kind elman"):
        pack("elman", module._flat_weights, dtype=torch.float32)
    with pytest.raises(UsageError, match=r"dtype torch\.float16"):
        packed(module, torch.float16)
    with pytest.raises(UsageError, match="weights 4 tensors"):
        pack("lstm", module._flat_weights, layers=2, dtype=torch.float32)
    with pytest.raises(UsageError, match=r"x torch\.float64"):
        recurrent(torch.randn(3, 2, 5, dtype=torch.float64), packed(module))
    with pytest.raises(RuntimeError, match="gradient"):
        recurrent(torch.randn(3, 2, 5, requires_grad=True), packed(module))


@pytest.mark.skipif(not native.available(), reason="the checks are native")
def test_native_checks_its_operands():
    weights, x = packed(layer("lstm", 5, 8)), torch.randn(3, 2, 5)
    with pytest.raises(RuntimeError, match="x: not of shape"):
        recurrent(x[..., :4], weights)
    with pytest.raises(RuntimeError, match="h0"):
        recurrent(x, weights, torch.zeros(1, 3, 8), torch.zeros(1, 2, 8))
    with pytest.raises(RuntimeError, match="c0"):
        recurrent(x, weights, torch.zeros(1, 2, 8), torch.zeros(1, 2, 9))
    with pytest.raises(RuntimeError, match="batch_sizes: not falling"):
        recurrent(x[0], weights, batch_sizes=[1, 2])
    with pytest.raises(RuntimeError, match="batch_sizes: their sum"):
        recurrent(x[0], weights, batch_sizes=[2, 1])
    with pytest.raises(RuntimeError, match="weights: not packed"):
        torch.ops.slipstream.recurrent(x, weights.weights, weights.biases, None, None, [], 0, [5, 40, 0, 1, 1], False)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_float16_serve_other_levels(float16_level, kind):
    torch.manual_seed(8)
    module, x = layer(kind, 40, 50, 2, bidirectional=True, proj_size=20), torch.randn(7, 5, 40)
    made = packed(module, torch.bfloat16)
    assert made.weights.dtype is torch.float16
    for level in native.levels():
        with native.level(level):
            check(recurrent(x, made), oracle(module, x), BOUND[torch.bfloat16])


def test_one_weight_that_does_not_fit_float16_leaves_all_in_bfloat16(float16_level):
    torch.manual_seed(9)
    module, x = layer("lstm", 40, 50, 2), torch.randn(7, 5, 40)
    with torch.no_grad():
        module.weight_hh_l1[60, 3] = -(2.0**42)
    made = packed(module, torch.bfloat16)
    assert made.weights.dtype is torch.bfloat16
    check(recurrent(x, made), oracle(module, x), BOUND[torch.bfloat16])


def test_packing_inside_autocast_changes_nothing(level):
    torch.manual_seed(10)
    module, x = layer("lstm", 40, 50, 2), torch.randn(7, 5, 40)
    expected = recurrent(x, packed(module, torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        inside = packed(module, torch.bfloat16)
    assert all(torch.equal(*pair) for pair in zip(recurrent(x, inside), expected, strict=True))
