# SPDX-License-Identifier: Apache-2.0
"""The demo fails when results disagree or a script fails, and says which."""

import numpy as np
import pytest

from benchmarks import demo
from benchmarks.options import DemoOptions

PLAIN = [{"label": 3}, {"label": 1}]
SCORES = np.array([[1.0, 2.0], [2.0, -1.0]])


def outcome(answers=PLAIN, vectors=SCORES, median=0.1):
    return demo.Outcome(answers, {"first_s": median * 3, "median_s": median, "total_s": median * 10}, vectors)


def test_equal_results_agree():
    assert demo.compare(outcome(), outcome(), dtype="float32").holds


@pytest.mark.parametrize(
    "other",
    [
        outcome(answers=[{"label": 3}, {"label": 2}]),
        outcome(vectors=np.array([[1.0, 2.0], [2.0, 1.0]])),
        outcome(vectors=SCORES * np.nan),
    ],
    ids=["another class", "another direction", "not a number"],
)
def test_other_results_disagree(other):
    assert not demo.compare(other, outcome(), dtype="float32").holds


def test_search_results_are_compared_by_the_best_hit():
    hits = [{"hits": [{"text": "a", "score": 0.9}, {"text": "b", "score": 0.8}]}]
    swapped = [{"hits": [{"text": "a", "score": 0.89}, {"text": "c", "score": 0.8}]}]
    assert demo.compare(outcome(answers=swapped), outcome(answers=hits), dtype="bfloat16").first_equal == 1


@pytest.fixture
def scripted(monkeypatch):
    """Scripts answer at once: plain in 0.2 s a batch, ours in 0.1 s and with ``vectors``."""

    def install(vectors):
        def start(example, way, *, quick):
            return outcome(median=0.2) if way.name == "plain" else outcome(vectors=vectors)

        monkeypatch.setattr(demo, "start", start)

    monkeypatch.setenv("COLUMNS", "160")
    return install


def test_a_run_prints_the_speedup_and_ends_well(scripted, capsys, tmp_path):
    scripted(SCORES)
    options = DemoOptions(examples=("classify_text",), rounds=2, json=tmp_path / "demo.json")
    assert demo.run(options) == 0
    out = capsys.readouterr().out
    assert "classify_text.py" in out and "2.00 (2.00–2.00)" in out and "DISAGREES" not in out
    assert '"speedup": 2.0' in options.json.read_text()


def test_a_run_that_disagrees_ends_with_1_and_names_itself(scripted, capsys):
    scripted(-SCORES)
    assert demo.run(DemoOptions(examples=("classify_text",), rounds=1)) == 1
    out, err = capsys.readouterr()
    assert "DISAGREES" in out and "classify_text --dtype float32" in err


def test_a_script_that_fails_ends_the_run_with_its_last_words(monkeypatch, capsys, tmp_path):
    (tmp_path / "classify_text.py").write_text("import sys; sys.exit('no luck')\n")
    monkeypatch.setattr(demo, "EXAMPLES", tmp_path)
    assert demo.run(DemoOptions(examples=("classify_text",), rounds=1)) == 1
    assert "classify_text.py, plain, ended with 1: no luck" in capsys.readouterr().err
