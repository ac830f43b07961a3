# SPDX-License-Identifier: Apache-2.0
"""The kernels' benchmark measures right results, and means over the right ranges."""

import pytest
import torch

from benchmarks import kernel_families, kernels, options, tables
from benchmarks.kernel_means import family_means, geometric_means


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_shape(monkeypatch, dtype):
    monkeypatch.setattr(kernels, "TURN_S", 1e-4)
    monkeypatch.setattr(kernels, "COLD_BYTES", 3 * 64 * 48 * dtype.itemsize)
    with torch.inference_mode():
        row = kernels.measure(kernels.Shape(5, 64, 48, dtype), rounds=2)
    assert row["copies"] == 3
    assert row["error"] <= kernels.LARGEST_ERROR[dtype]
    assert len(row["samples_s"]["ours"]) == 2 and row["ours_us"] > 0
    assert ("over_mkl" in row) == (dtype is torch.float32)
    assert row["tflops"] == pytest.approx(2 * 5 * 64 * 48 / row["ours_us"] * 1e-6)


def test_geometric_means_take_each_row_into_one_range():
    rows = [
        {"dtype": "bfloat16", "rows": 1, "over_onednn": 2.0},
        {"dtype": "bfloat16", "rows": 4, "over_onednn": 0.5},
        {"dtype": "bfloat16", "rows": 1024, "over_onednn": 3.0},
    ]
    first, last = geometric_means(rows)
    assert (first["from"], first["to"], first["worst"]) == (1, 4, 0.5) and first["mean"] == pytest.approx(1)
    assert last["from"] == 513 and last["mean"] == pytest.approx(3)


def test_cycle_goes_round():
    call = kernels.cycle([lambda: torch.tensor(1), lambda: torch.tensor(2)])
    assert [int(call()) for _ in range(3)] == [1, 2, 1]


SMALL = {
    "linear_float32": ("high", 18, 40, 50),
    "linear_int8": (3, 40, 50),
    "convolution": (2, 8, 16, 9, 3, 2),
    "convolution_last": (2, 8, 16, 9, 3, 2),
    "depthwise": (2, 16, 9, 3, 1),
    "winograd": (2, 16, 24, 9),
    "attention": (1, 2, 20, 16, True),
    "batched_matmul": (3, 20, 16, 33, True),
    "norm": ("rms", 5, 48),
    "group_norm": (2, 64, 5),
    "max_pool": (2, 16, 9, 3, 2),
    "recurrent": (3, 2, 24),
    "concatenate": (3, 20, 24, 2, 7),
    "activation": ("silu", 5, 48),
    "transpose": (2, 16, 8),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", kernel_families.FAMILIES)
def test_each_family_has_right_results(monkeypatch, capsys, family, dtype):
    monkeypatch.setattr(kernels, "TURN_S", 1e-5)
    monkeypatch.setattr(kernel_families, "COLD_BYTES", 3000)
    torch.manual_seed(0)
    with torch.inference_mode():
        for row in kernels.measure_case(family, dtype, SMALL[family], rounds=2):
            assert row["error"] <= row["bound"]
            assert len(row["samples_s"]["theirs"]) == 2 and row["rate"] > 0
            tables.show_families([row], family_means([row]))
            assert row["rival"] in capsys.readouterr().out


def test_families_are_those_of_the_options():
    assert ("linear", *kernel_families.FAMILIES) == options.FAMILIES
