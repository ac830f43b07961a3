# SPDX-License-Identifier: Apache-2.0
"""Patterns of einops, which dynamo would read letter by letter, are read by einops.

How "b (h d) n -> b h n d" is carried out depends on the text, the names and the number of axes alone, and into which shapes on
numbers that guards know. Followed through einops's parser that takes dynamo 0.1 s a call, of which a vision transformer has a
hundred (einops 0.8.2, torch 2.13).
"""

from __future__ import annotations

import inspect
import sys
from typing import Any


class Recipes:
    """For one capture."""

    def __init__(self) -> None:
        einops = sys.modules.get("einops.einops")
        self.parse = getattr(einops, "_prepare_transformation_recipe", None)
        self.reshape = getattr(einops, "_reconstruct_from_shape", None)
        self._made: list[tuple[Any, Any]] = []
        """What stands for a recipe in the capture, and the recipe."""

    def instead(self) -> list[tuple[Any, str, Any]]:
        """Whose attribute of which name is what during the capture."""
        if self.parse is None or self.reshape is None:
            return []
        from torch._dynamo.variables.functions import WrapperUserFunctionVariable

        theirs = WrapperUserFunctionVariable.call_function

        def call_function(called: Any, tx: Any, args: Any, kwargs: Any) -> Any:
            cached = getattr(called, "wrapper_obj", None)
            if cached is self.parse and _are_known(args, kwargs):
                return self._parsed(tx, *_values(args, kwargs))
            recipe = self._recipe(args[0]) if cached is self.reshape and args else None
            if recipe is not None and _are_known(args[1:], kwargs):
                others, named = _values(args[1:], kwargs)
                return _built(tx, self.reshape(recipe, *others, **named))  # type: ignore[misc]
            return theirs(called, tx, args, kwargs)

        return [(WrapperUserFunctionVariable, "call_function", call_function)]

    def _parsed(self, tx: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        from torch._dynamo.source import AttrSource

        recipe = self.parse(*args, **kwargs)  # type: ignore[misc]
        kind = type(recipe)
        fields = [_built(tx, getattr(recipe, name)) for name in inspect.signature(kind).parameters]
        made = _built(tx, kind, AttrSource(tx.import_source(kind.__module__), kind.__name__)).call_function(tx, fields, {})
        self._made.append((made, recipe))
        return made

    def _recipe(self, given: Any) -> Any:
        return next((recipe for made, recipe in self._made if made is given), None)


def _built(tx: Any, value: Any, *source: Any) -> Any:
    from torch._dynamo.variables.base import VariableTracker

    return VariableTracker.build(tx, value, *source)


def _are_known(args: Any, kwargs: Any) -> bool:
    return all(given.is_python_constant() for given in (*args, *kwargs.values()))


def _values(args: Any, kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
    return [given.as_python_constant() for given in args], {name: given.as_python_constant() for name, given in kwargs.items()}
