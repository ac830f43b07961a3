# SPDX-License-Identifier: Apache-2.0
"""Reads, in the source of the method that calls a module, where the module's result goes, when that can be proven.

    def forward(self, x):
        x = self.conv(x)        # the result lives in x alone,
        x = self.bn(x)          # is handed to bn and to nothing else, and x is bound anew;
        return self.relu(x)     # likewise

Nothing is executed or traced. What is not plainly visible (another use of the value, a branch that the
instance's own attributes do not decide, a try, a closure) ends the chain; no proof is a proof of nothing.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import textwrap
from dataclasses import dataclass
from types import CodeType

from torch import nn

OPAQUE = (ast.Try, ast.Yield, ast.YieldFrom, ast.Await, ast.Global, ast.Nonlocal, ast.Match)
"""With one of these in a function, none of its values is followed."""

PEEPING = {"locals", "vars", "eval", "exec", "globals"}
"""With one of these names in it, neither."""


@dataclass(frozen=True)
class HandOver:
    """At ``lines`` of ``code``, the result of ``self.<name>`` goes to the submodules ``followers``, in order, and nowhere else.

    That holds for as long as each attribute in ``conditions`` is (True) or is not (False) there: the branches taken.
    """

    code: CodeType
    lines: range
    name: str
    followers: tuple[str, ...]
    conditions: tuple[tuple[str, bool], ...]

    def still_holds(self, parent: nn.Module) -> bool:
        return all(_is_there(parent, name) is there for name, there in self.conditions)


def find(code: CodeType, line: int, parent: nn.Module, name: str) -> HandOver | None:
    """What is proven of the call ``self.<name>(…)`` that ``code``, running with ``self`` = ``parent``, makes at ``line``."""
    source = _source(code)
    if source is None:
        return None
    calls = [call for call in source.calls.get(name, ()) if line in _lines(call)]
    if len(calls) != 1:
        return None  # two calls on one line cannot be told apart by the line
    reader = _Reader(source, parent)
    followers = tuple(reader.followers(calls[0]))
    return HandOver(code, _lines(calls[0]), name, followers, tuple(reader.conditions)) if followers else None


class _Source:
    """One function's syntax tree, looked through once for all instances whose method it is."""

    def __init__(self, function: ast.FunctionDef, code: CodeType) -> None:
        self.own = function.args.args[0].arg
        self.plain_locals = set(code.co_varnames) - set(code.co_cellvars)
        self.above: dict[ast.AST, ast.AST] = {}
        self.calls: dict[str, list[ast.Call]] = {}
        self.names: dict[str, list[ast.Name]] = {}
        self.is_opaque = False
        nodes: list[ast.AST] = [function]
        for node in nodes:  # which grows meanwhile
            self._note(node)
            for value in vars(node).values():
                for child in value if isinstance(value, list) else (value,):
                    if isinstance(child, ast.AST) and not isinstance(child, ast.expr_context):
                        self.above[child] = node
                        nodes.append(child)

    def _note(self, node: ast.AST) -> None:
        if isinstance(node, ast.Name):
            self.names.setdefault(node.id, []).append(node)
            self.is_opaque = self.is_opaque or node.id in PEEPING
        elif isinstance(node, ast.Call):
            name = self.attribute(node.func)
            if name is not None:
                self.calls.setdefault(name, []).append(node)
        elif isinstance(node, OPAQUE):
            self.is_opaque = True

    def attribute(self, node: ast.AST) -> str | None:
        """``name`` where the node is ``self.<name>``."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self.own:
            return node.attr
        return None


@functools.cache
def _source(code: CodeType) -> _Source | None:
    """The function's syntax tree with the file's line numbers; None where it cannot be had or must not be read."""
    lines = linecache.getlines(code.co_filename)  # not inspect.getsource, which looks through every module there is
    first = code.co_firstlineno - 1
    try:
        block = textwrap.dedent("".join(inspect.getblock(lines[first:])))
        function = ast.parse("\n" * first + block).body[0]
    except (SyntaxError, IndexError, ValueError, TypeError):
        return None
    if not isinstance(function, ast.FunctionDef) or function.name != code.co_name or not function.args.args:
        return None
    source = _Source(function, code)
    return None if source.is_opaque else source


def _lines(node: ast.expr) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _is_there(parent: nn.Module, name: str) -> bool | None:
    """Whether an attribute is a submodule or a true flag (True), None or a false flag (False); None: cannot be told."""
    if name in parent._modules:
        return parent._modules[name] is not None
    value = parent.__dict__.get(name, parent)
    return bool(value) if value is None or isinstance(value, bool) else None


class _Reader:
    """One function, read for one instance."""

    def __init__(self, source: _Source, parent: nn.Module) -> None:
        self.source = source
        self.above = source.above
        self.attribute = source.attribute
        self.parent = parent
        self.conditions: list[tuple[str, bool]] = []

    def followers(self, value: ast.expr) -> list[str]:
        """The submodules that a value passes through, one after the other."""
        names: list[str] = []
        while True:
            known = len(self.conditions)
            user = self.above[value]
            if isinstance(user, ast.Assign):
                use = self.sole_use(user)
                user, value = (self.above[use], use) if use is not None else (user, value)
            name = self.called_with(user, value)
            if name is None:
                del self.conditions[known:]  # branches decided on the way to nothing do not matter
                return names
            names.append(name)
            assert isinstance(user, ast.Call)
            value = user

    def called_with(self, node: ast.AST, argument: ast.expr) -> str | None:
        """``name`` where the node is ``self.<name>(argument)``, a submodule called with that alone."""
        if not isinstance(node, ast.Call) or node.keywords or node.args != [argument]:
            return None
        name = self.attribute(node.func)
        is_module = name is not None and isinstance(self.parent._modules.get(name), nn.Module)
        return name if is_module and not hasattr(type(self.parent), str(name)) else None

    def sole_use(self, assignment: ast.Assign) -> ast.Name | None:
        """Where the variable just assigned is read: in the very next statement, before anything else, and never again."""
        target = assignment.targets[0]
        if len(assignment.targets) != 1 or not isinstance(target, ast.Name) or target.id not in self.source.plain_locals:
            return None
        following = self.after(assignment)
        if not isinstance(following, ast.Assign | ast.Return) or following.value is None:
            return None
        reads = [node for node in ast.walk(following.value) if isinstance(node, ast.Name) and node.id == target.id]
        if len(reads) != 1 or not self.is_evaluated_first(reads[0], following):
            return None
        return reads[0] if self.dies_in(following, target.id) else None

    def is_evaluated_first(self, read: ast.Name, statement: ast.Assign | ast.Return) -> bool:
        """Whether only submodules called with the value alone, and left operands, lie between it and its statement."""
        node: ast.AST = read
        while node is not statement.value:
            above = self.above[node]
            if not (isinstance(node, ast.expr) and self.called_with(above, node)) and not (
                isinstance(above, ast.BinOp) and above.left is node
            ):
                return False
            node = above
        return True

    def dies_in(self, statement: ast.Assign | ast.Return, variable: str) -> bool:
        if isinstance(statement, ast.Return):
            return True
        target = statement.targets[0]
        if len(statement.targets) == 1 and isinstance(target, ast.Name) and target.id == variable:
            return True
        return len(self.source.names[variable]) == 2  # one assignment, one read

    def after(self, statement: ast.stmt) -> ast.stmt | None:
        """The statement that runs next, where that is certain."""
        block = self.block_of(statement)
        position = block.index(statement) + 1
        if position == len(block):
            above = self.above[statement]
            return self.after(above) if isinstance(above, ast.If) else None
        return self.entered(block[position])

    def entered(self, statement: ast.stmt) -> ast.stmt | None:
        """The statement itself, or the first of the branch that the instance's attributes decide."""
        if not isinstance(statement, ast.If):
            return statement
        name, there_means_body = self.condition_of(statement.test)
        there = None if name is None else _is_there(self.parent, name)
        if name is None or there is None:
            return None
        self.conditions.append((name, there))
        branch = statement.body if there is there_means_body else statement.orelse
        return self.entered(branch[0]) if branch else self.after(statement)

    def condition_of(self, test: ast.expr) -> tuple[str | None, bool]:
        """(name, True) for ``self.name`` and ``self.name is not None``; (name, False) for their opposites."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            name, sense = self.condition_of(test.operand)
            return name, not sense
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            right = test.comparators[0]
            against_none = isinstance(right, ast.Constant) and right.value is None
            if against_none and isinstance(test.ops[0], ast.Is | ast.IsNot):
                return self.attribute(test.left), isinstance(test.ops[0], ast.IsNot)
            return None, False
        name = self.attribute(test)
        # a submodule may have a truth value of its own (Sequential's is its length): only flags are asked for theirs
        return (None if name in self.parent._modules else name), True

    def block_of(self, statement: ast.stmt) -> list[ast.stmt]:
        above = self.above[statement]
        blocks = (getattr(above, field, []) for field in ("body", "orelse"))
        return next(block for block in blocks if isinstance(block, list) and statement in block)
