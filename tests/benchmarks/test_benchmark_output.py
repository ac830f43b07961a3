# SPDX-License-Identifier: Apache-2.0
"""Tables and the picture show every contestant, the failed ones too."""

import json
import xml.etree.ElementTree

import pytest

from benchmarks import picture, tables, write_up

RIGHT = {"flop": 2e8, "rounds_ms": [[25.0], [24.0, 26.0]], "ms": 25.0, "ms_low": 24.0, "ms_high": 150.0, "setup_s": 0.25}
RIGHT |= {"error": 0.004}
ROWS = [
    {"model": "bert", "contestant": "eager-float32", "speedup": 1.0, "speedup_low": 1.0, "speedup_high": 1.0}
    | RIGHT
    | {"ms": 100.0},
    {"model": "bert", "contestant": "ipex-bfloat16", "failure": "illegal instruction", "rounds_ms": [[1.0]], "error": 0.0},
    {"model": "bert", "contestant": "openvino-bfloat16", "speedup": 2.0, "speedup_low": 2.0, "speedup_high": 2.0}
    | RIGHT
    | {"rounds_ms": [[50.0], [40.0]]},
    {"model": "bert", "contestant": "compile-bfloat16", "speedup": 9.0, "speedup_low": 9.0, "speedup_high": 9.0}
    | RIGHT
    | {"rounds_ms": [[1.0], [1.0]], "error": 0.7},
    {"model": "bert", "contestant": "ours-bfloat16", "speedup": 4.0, "speedup_low": 3.5, "speedup_high": 4.5} | RIGHT,
]


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_zoo_table(capsys):
    tables.show_zoo(ROWS)
    out = capsys.readouterr().out
    assert "4.00 (3.50–4.50)" in out and "24.0–150" in out and "4.0e-03" in out
    assert "illegal instruction" in out
    assert "ours-bfloat16 *" in out and "eager-float32 *" not in out


def test_write_up_says_what_the_runs_wrote(tmp_path):
    facts = {"cpus": 2, "features": ["AVX2"], "not_there": [], "memory_gb": 8, "python": "3.12"}
    facts |= {"torch": "2.13", "transformers": "5", "kernels": "twins"}
    agreement = {"first_equal": 1.0, "cosine": 0.99998, "holds": True}
    demo_row = ROWS[-1] | {"example": "classify_text", "way": "--dtype bfloat16", "agreement": agreement}
    kernel_row = {"dtype": "bfloat16", "rows": 4, "over_onednn": 1.25}
    family_row = {"family": "norm", "dtype": "float32", "rival": "torch's"}
    family_rows = [family_row | {"over": 2.0}, family_row | {"over": 0.5}]
    ceilings = [figures(1, 0.005, None), figures(2, 0.005, 0.01)]
    written = {
        "demo": {"machine": facts, "rows": [demo_row]},
        "zoo": {
            "machine": facts, "ceilings": ceilings, "rows": ROWS, "settings": {"rounds": 3, "seconds": 1.5, "threads": 2},
        },
        "kernels": {"machine": facts, "rows": [kernel_row], "families": family_rows},
    }
    paths = {name: tmp_path / f"{name}.json" for name in written}
    for name, path in paths.items():
        path.write_text(json.dumps(written[name]))
    text = write_up.markdown(paths)
    assert "| `classify_text.py` | `--dtype bfloat16` | 25.0 | 4.00 (3.50–4.50) | 0.25 | 100% | 0.999980 |" in text
    assert "| model | eager-float32 | ipex-bfloat16 | openvino-bfloat16 | compile-bfloat16 | ours-bfloat16 |" in text
    assert "| `bert` | 1.00 (1.00–1.00) | failed | 2.00 (2.00–2.00) | 9.00 (9.00–9.00) | 4.00 (3.50–4.50) |" in text
    assert "| `bert` | – | – | openvino | 1.80 (1.60–2.00) |" in text  # torch.compile's answer is wrong, float32 not there
    assert "| geometric mean |  | – |  | 1.80 |" in text
    assert "| `bert` | bfloat16 | 0 | 1.25 | 1.25 |" in text  # the row of the peer has ours' median; 20 ms at the ceiling
    assert "| bfloat16 | onednn | 1–4 | 1.25 | 1.25 |" in text
    assert "| norm | float32 | torch's | 2 | 1.00 | 0.50 |" in text


def figures(threads, fma, dot):
    lacking = {"fma_float16_tflops": None, "amx_bfloat16_tflops": None, "amx_bfloat16_fed_tflops": None}
    return {"threads": threads, "fma_float32_tflops": fma, "dot_bfloat16_tflops": dot, "read_gb_per_s": 20.0, **lacking}


def test_ceilings_that_the_machine_lacks_are_said_to_be_absent(capsys):
    facts = {"cpus": 2, "features": ["AVX2"], "not_there": [], "memory_gb": 8, "python": "3.12"}
    tables.show_machine(facts | {"torch": "2.13", "transformers": "5", "kernels": "twins"}, [figures(1, 0.1156, None)])
    out = capsys.readouterr().out
    assert "2 CPUs with AVX2" in out and "0.116 TFLOP/s" in out and out.count("not there") == 4


def test_picture_is_well_formed_and_the_same_twice(tmp_path):
    pytest.importorskip("matplotlib")
    files = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for path in files:
        picture.draw(ROWS, path)
    assert files[0].read_bytes() == files[1].read_bytes()
    text = "".join(xml.etree.ElementTree.parse(files[0]).getroot().itertext())
    drawn = files[0].read_text()
    assert xml.etree.ElementTree.fromstring(drawn).tag.endswith("svg")
    assert "ours-bfloat16" in drawn + text and "bert" in drawn + text
