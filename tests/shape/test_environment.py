# SPDX-License-Identifier: Apache-2.0
"""The environment is read in two files only, and every variable has a docstring."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[2] / "slipstream"
READERS = {"env.py", "launcher/environment.py"}


def test_environment_is_read_in_two_files_only():
    for path in PACKAGE.rglob("*.py"):
        if str(path.relative_to(PACKAGE)) in READERS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "putenv"}:
                raise AssertionError(f"{path}:{node.lineno} touches the environment; use slipstream.env")


def test_every_variable_is_documented():
    body = ast.parse((PACKAGE / "env.py").read_text()).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            assert documented, f"{node.targets[0].id} has no docstring"
