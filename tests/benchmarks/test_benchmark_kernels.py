# SPDX-License-Identifier: Apache-2.0
"""The kernels' benchmark measures right results, and means over the right ranges."""

import pytest
import torch

from benchmarks import kernels
from benchmarks.kernel_means import geometric_means


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
