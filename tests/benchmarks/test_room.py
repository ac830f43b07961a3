# SPDX-License-Identifier: Apache-2.0
"""Room is counted from the fastest way that a dtype's products can be computed here."""

import pytest

from benchmarks.room import rooms


def row(contestant, ms):
    return {"model": "m", "contestant": contestant, "ms": ms, "rounds_ms": [[ms]], "flop": 1e9, "error": 0.0}


def report(**ceilings):
    figures = {"fma_float32_tflops": 0.25, "dot_bfloat16_tflops": None, "amx_bfloat16_fed_tflops": None, **ceilings}
    names = ("eager-float32", "eager-bfloat16", "openvino-float32", "openvino-bfloat16", "ours-float32", "ours-bfloat16")
    return {"ceilings": [figures], "rows": [row(name, 8.0) for name in names]}


@pytest.mark.parametrize(
    ("ceilings", "least_ms"),
    [
        ({}, 4.0),
        ({"dot_bfloat16_tflops": 0.125}, 4.0),  # bfloat16 is multiplied as float32 where that is faster
        ({"dot_bfloat16_tflops": 0.5}, 2.0),
        ({"dot_bfloat16_tflops": 0.125, "fma_float16_tflops": 0.5}, 2.0),
        ({"dot_bfloat16_tflops": 0.125, "amx_bfloat16_fed_tflops": 1.0}, 1.0),
    ],
)
def test_the_fastest_way_is_the_ceiling(ceilings, least_ms):
    found = {room.dtype: room for room in rooms(report(**ceilings))}
    assert found["float32"].ours == pytest.approx(8.0 / 4.0)
    assert found["bfloat16"].ours == pytest.approx(8.0 / least_ms)
    assert found["bfloat16"].peer == pytest.approx(8.0 / least_ms)
