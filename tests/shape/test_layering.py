# SPDX-License-Identifier: Apache-2.0
"""Parts import downward only: the picture in docs/architecture.md, as a table that cannot rot."""

import ast
import importlib
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / "slipstream"
LEAVES = {"env", "errors", "decision"}
MAY_IMPORT = {
    "__init__": {"optimize"},  # public verbs, for type checkers only; at run time they are loaded on first use
    "env": set(),
    "errors": set(),
    "decision": set(),
    "module_tree": LEAVES,
    "runtime": LEAVES,
    "kernels": LEAVES | {"runtime"},
    "optimize": LEAVES | {"runtime", "kernels", "module_tree"},
    "quantization": LEAVES | {"kernels", "module_tree"},
    "llm": LEAVES | {"optimize", "quantization", "kernels", "runtime", "module_tree"},
    "autopatch": LEAVES | {"runtime"},
    "launcher": LEAVES | {"runtime", "autopatch"},
    "compat": LEAVES,
}


def part_of(path: pathlib.Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_parts(path: pathlib.Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import on line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            pieces = name.split(".")
            if pieces[0] == "slipstream" and len(pieces) > 1 and pieces[1] != "__version__":
                parts.add(pieces[1])
    return parts


def modules() -> list[pathlib.Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "on_path" not in path.parts)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path):
    part = part_of(path)
    assert part in MAY_IMPORT, f"a new part, {part}: give it a row in MAY_IMPORT"
    above = imported_parts(path) - MAY_IMPORT[part] - {part}
    assert not above, f"{part} may not import {sorted(above)}"


def test_names_given_as_strings_resolve():
    pattern = re.compile(r"""["'](slipstream(?:\.\w+)+):(\w+)["']""")
    found = [(path, match) for path in modules() for match in pattern.findall(path.read_text())]
    for path, (module, attribute) in found:
        assert hasattr(importlib.import_module(module), attribute), f"{path} names {module}:{attribute}"
