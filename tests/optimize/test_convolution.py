# SPDX-License-Identifier: Apache-2.0
"""A prepacked convolution answers with torch's numbers, dtype, shape and strides, in every layout."""

import copy
import itertools

import pytest
import torch
from torch import nn

from slipstream.decision import log
from slipstream.kernels import native
from slipstream.kernels.channels_last.layer import PackedLayer
from slipstream.kernels.convolution import PackedConvolution
from slipstream.optimize.options import Options
from slipstream.optimize.pieces.convolution import ConvolutionPiece
from slipstream.optimize.pieces.linear import onednn_has_bfloat16

# in, out, kernel, stride, padding, groups, dilation
GEOMETRIES = [
    (3, 16, 3, 1, 1, 1, 1),
    (16, 32, 1, 1, 0, 1, 1),
    (16, 16, 3, 2, 1, 16, 1),
    (1, 8, 5, 1, 0, 1, 1),
    (8, 1, 3, 1, 1, 1, 1),
    (32, 64, 3, 1, 2, 4, 2),
    (1, 1, 1, 1, 0, 1, 1),
]
needs_bfloat16 = pytest.mark.skipif(not onednn_has_bfloat16(), reason="torch's oneDNN has no bfloat16 here")
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)]


def both(conv, x, dtype):
    conv = conv.eval()
    piece = ConvolutionPiece(conv, "conv", Options(dtype))
    with torch.no_grad():
        tensors = piece.tensors(conv)
        content, _ = piece.make(conv, tensors, piece.plan(x, tensors))
        return piece.run(conv, x, content, tensors), conv(x)


def assert_same(conv, x, dtype):
    got, wanted = both(conv, x, dtype)
    assert (got.dtype, got.shape, got.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
    limit = 1e-2 if dtype == torch.bfloat16 else 1e-5
    assert (got - wanted).norm() <= limit * wanted.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv2d_in_every_layout(geometry, dtype):
    i, o, k, s, p, g, d = geometry
    layouts = [torch.contiguous_format, torch.channels_last]
    sizes = [(14, 15), (5, 5)]
    for weight, image, (h, w), batch in itertools.product(layouts, layouts, sizes, (1, 2, 17)):
        conv = nn.Conv2d(i, o, k, s, p, groups=g, dilation=d).to(memory_format=weight)
        assert_same(conv, torch.randn(batch, i, h, w).contiguous(memory_format=image), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_other_ranks_and_transposes(geometry, dtype):
    i, o, k, s, p, g, d = geometry
    back = g if o % g == 0 else 1
    for batch in (1, 3):
        row, cube = torch.randn(batch, i, 33), torch.randn(batch, i, 5, 6, 7)
        assert_same(nn.Conv1d(i, o, k, s, p, groups=g, dilation=d), row, dtype)
        assert_same(nn.Conv1d(i, o, k, s, p, groups=g, dilation=d), torch.randn(batch, 33, i).transpose(1, 2), dtype)
        assert_same(nn.Conv3d(i, o, k, s, p, groups=g, dilation=d), cube, dtype)
        assert_same(nn.ConvTranspose1d(i, o, k, s, p, s - 1, groups=back, dilation=d), row, dtype)
        assert_same(nn.ConvTranspose2d(i, o, k, s, min(p, 1), groups=back, dilation=d), cube[:, :, 0], dtype)
        assert_same(nn.ConvTranspose3d(i, o, k, s, p, groups=back, dilation=d), cube, dtype)


@needs_bfloat16
@pytest.mark.skipif(not native.available(), reason="levels of the extension")
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_bfloat16_goes_to_the_kernel_of_the_level(form):
    ours = dict.fromkeys((*native.WITHOUT_BFLOAT16, native.FLOAT16), PackedLayer)
    if form is torch.contiguous_format:
        ours["avx512_bf16"] = PackedConvolution
    conv, x = nn.Conv2d(40, 64, 3, padding=1).to(memory_format=form).eval(), torch.randn(2, 40, 9, 10)
    x = x.contiguous(memory_format=form)
    piece = ConvolutionPiece(conv, "conv", Options(torch.bfloat16))
    for level in native.levels():
        with native.level(level):
            content, _ = piece.make(conv, piece.tensors(conv), torch.bfloat16)
            assert isinstance(content[0], ours.get(level, torch.Tensor))
            y, wanted = piece.run(conv, x, content, piece.tensors(conv)), conv(x)
        assert (y.dtype, y.stride()) == (wanted.dtype, wanted.stride())
        assert (y - wanted).norm() <= 1e-2 * wanted.norm()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding, bias):
    assert_same(nn.Conv2d(4, 8, 3, padding=padding, bias=bias), torch.randn(2, 4, 9, 9), torch.float32)


@pytest.mark.parametrize("options", [{"padding": 1, "padding_mode": "reflect"}, {"padding": "same", "kernel_size": 4}])
def test_what_no_kernel_can_do_is_refused_with_a_reason(options):
    conv = nn.Conv2d(4, 8, **{"kernel_size": 3, **options})
    piece = ConvolutionPiece(conv, "conv", Options(torch.float32))
    assert "padding" in piece.plan(torch.randn(2, 4, 9, 9), piece.tensors(conv))


def test_unbatched_input_and_wrong_channels_go_to_the_original():
    conv = nn.Conv2d(4, 8, 3)
    piece = ConvolutionPiece(conv, "conv", Options(torch.float32))
    assert piece.size_of(conv, torch.randn(4, 9, 9)) is None
    assert piece.size_of(conv, torch.randn(2, 3, 9, 9)) is None


def test_a_setting_changed_afterwards_goes_to_the_original():
    conv = nn.Conv2d(4, 8, 3)
    piece = ConvolutionPiece(conv, "conv", Options(torch.float32))
    conv.stride = (2, 2)
    assert piece.tensors(conv) is None


LARGE = [
    (nn.Conv1d(64, 64, 3, stride=2), (1, 64, 4000)),
    (nn.Conv1d(64, 64, 128, padding=64, groups=16), (2, 64, 3000)),
    (nn.Conv2d(64, 64, 3, padding=2, dilation=2), (1, 64, 60, 80)),
    (nn.Conv2d(1, 512, 7, padding="same"), (3, 1, 60, 80)),
    (nn.Conv3d(16, 64, 3), (1, 16, 40, 20, 20)),
    (nn.ConvTranspose1d(64, 64, 4, stride=2, padding=1), (1, 64, 4000)),
    (nn.ConvTranspose2d(64, 64, 3, stride=2, output_padding=1), (1, 64, 60, 40)),
]


@pytest.mark.parametrize(
    ("conv", "shape", "channels_last"),
    [*((*case, False) for case in LARGE), *((conv, shape, True) for conv, shape in LARGE if len(shape) == 4)],
)
@torch.no_grad()
def test_of_a_large_image_some_rows_are_compared(engine, monkeypatch, conv, shape, channels_last):
    ran = []
    run = ConvolutionPiece.run

    def noting(piece, module, x, *rest):
        ran.append(x.shape[2])
        return run(piece, module, x, *rest)

    monkeypatch.setattr(ConvolutionPiece, "run", noting)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    conv = copy.deepcopy(conv).eval()
    wanted = conv(x)
    engine("float32")
    conv(x)
    got = conv(x)
    assert (got.shape, got.stride()) == (wanted.shape, wanted.stride())
    assert (got - wanted).norm() <= 1e-5 * wanted.norm()
    compared, *answered = ran
    assert answered and set(answered) == {x.shape[2]}
    assert compared < x.shape[2]


@torch.no_grad()
def test_where_those_rows_are_empty_the_whole_is_compared():
    conv, x = nn.Conv2d(64, 64, 3).eval(), torch.zeros(1, 64, 60, 80)
    piece = ConvolutionPiece(conv, "conv", Options())
    assert piece.excerpt(conv, x) is x
    x[:, :, 30, 7] = 1.0
    assert piece.excerpt(conv, x).shape[2] < 60


@torch.no_grad()
def test_a_wrong_pack_is_found_on_those_rows(engine, monkeypatch):
    run = ConvolutionPiece.run
    monkeypatch.setattr(ConvolutionPiece, "run", lambda *arguments: run(*arguments) * 1.001)
    conv, x = nn.Conv2d(64, 64, 3).eval(), torch.randn(1, 64, 60, 80)
    wanted = conv(x)
    engine("float32")
    for _ in range(3):
        assert torch.equal(conv(x), wanted)
    assert any("not accurate enough" in decision.reason for decision in log)
