# SPDX-License-Identifier: Apache-2.0
"""Files, functions and folders stay small enough to be read in one sitting."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PYTHON_FILES = sorted((ROOT / "slipstream").rglob("*.py"))
NATIVE_FILES = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".cpp", ".h"})
FORBIDDEN_STEMS = {"utils", "common", "helpers", "base", "core", "manager", "misc"}


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name)
def test_python_file(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    assert path.stem not in FORBIDDEN_STEMS
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno <= 60, f"{node.name} is too long"
    assert not text.strip() or ast.get_docstring(tree), "a module opens by saying what is in it"


@pytest.mark.parametrize("path", NATIVE_FILES, ids=name)
def test_native_file(path):
    assert path.read_text().count("\n") <= 600


def test_folders_are_small():
    for folder in {path.parent for path in PYTHON_FILES}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 16, f"{name(folder)} holds {len(files)} files"
