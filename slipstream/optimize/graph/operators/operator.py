# SPDX-License-Identifier: Apache-2.0
"""What all operators of a lowered graph share: the dtypes, the packed weights, and what runs where there can be no pack."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from typing import Any

import torch

from slipstream.optimize import packs

Tensors = tuple[torch.Tensor | None, ...]

Answer = tuple[Callable[..., Any], tuple[packs.Pack, ...]]
"""A function of what a call takes, and the packs that it uses in place of the weights."""

PATIENCE = 3
"""Packs that may go unused before the weights count as ones that change at every call."""

_numbers = itertools.count()


class Operator:
    """A node's target. ``product`` is the dtype that is multiplied in, ``out`` the dtype of the result."""

    kind = "operator"
    follows = False
    """Whether the result has the input's dtype, whatever that is."""
    gives_float32 = False
    """Whether the result is float32, whatever the inputs are."""

    def __init__(self, product: torch.dtype, out: torch.dtype) -> None:
        self.product = product
        self.out = out
        # what torch.fx writes into the code that it makes of a graph
        self.__name__ = f"{self.kind}_{next(_numbers)}"
        self.__module__ = "slipstream"
        self.__qualname__ = self.__name__

    def __call__(self, *inputs: Any) -> torch.Tensor:
        raise NotImplementedError


class PackedOperator(Operator):
    """An operator that keeps what it makes of weights, and makes it anew when they change. Subclasses make it and use it."""

    first_weight: int
    """Where among what it takes the weights begin; they stand last."""

    def __init__(self, product: torch.dtype, out: torch.dtype) -> None:
        super().__init__(product, out)
        self.pack: packs.Pack | None = None
        self.unused = 0
        self.waiting = 0

    def choose(self) -> None:
        """Settle how to hold the weights for what is asked for now, before their pack is looked for."""

    def pack_kind(self, tensors: Tensors) -> Hashable:
        """What a pack depends on beside the tensors; equal kinds of one tensor share it."""
        raise NotImplementedError

    def sources(self, tensors: Tensors) -> Tensors:
        """Those of the tensors, from the first on, that the pack is made from."""
        raise NotImplementedError

    def make(self, tensors: Tensors) -> tuple[Any, int]:
        """The pack's content, and its size in bytes."""
        raise NotImplementedError

    def is_shared(self, tensors: Tensors) -> bool:
        """Whether a layer, or another graph, holds the pack already."""
        self.choose()
        return packs.find(self.pack_kind(tensors), *self.sources(tensors)) is not None

    def settle(self, tensors: Tensors) -> Answer | None:
        """What may answer in its place, without a look at the weights, while its packs fit these; None where nothing may."""
        return None

    def fitting(self, tensors: Tensors) -> packs.Pack | None:
        """Its pack, read once, if that was made from these tensors: another thread may be about to replace it."""
        pack = self.pack
        return pack if pack is not None and pack.fits(tensors) else None

    def content(self, tensors: Tensors) -> Any:
        """What was packed from just these tensors as they are now; None where they must not be, or change too often."""
        self.choose()
        pack = self.pack
        if pack is None or not pack.fits(tensors):
            pack = self._pack_again(tensors)
            if pack is None:
                return None
        pack.life.uses += 1
        return pack.content

    def _pack_again(self, tensors: Tensors) -> packs.Pack | None:
        if self.waiting > 0:
            self.waiting -= 1
            return None
        old, self.pack = self.pack, None
        if old is not None:
            self.unused = self.unused + 1 if old.life.uses < 2 else 0
            if self.unused >= PATIENCE:
                self.waiting = 1 << min(self.unused, 16)
                return None
        sources = self.sources(tensors)
        if packs.refusal(*sources) is not None:
            return None
        kind = self.pack_kind(tensors)
        with torch.no_grad():
            self.pack = packs.find(kind, *sources) or packs.make(kind, lambda: self.make(tensors), *sources)
        return self.pack


class WeightOperator(PackedOperator):
    """An operator with packed weights. Of what it takes, the second is a residual, or None."""
