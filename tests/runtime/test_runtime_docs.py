# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/runtime.md run as they stand there."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "runtime.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
@pytest.mark.skipif(0 not in os.sched_getaffinity(0), reason="the examples name CPU 0, which this process may not use")
def test_example(example):
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_there_are_examples():
    assert len(EXAMPLES) == 2
