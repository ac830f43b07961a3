# SPDX-License-Identifier: Apache-2.0
"""Packed copies of parameters, beside the modules, valid for exactly the values that they were made from.

A pack carries a stamp of its parameter: identity, version counter, address. Together they see in-place
changes, optimizer steps, `load_state_dict` (also ``assign=True``) and re-assignment. What they cannot see is
a change through ``parameter.data``, which has a version counter of its own; therefore `watch_data` puts a
property over ``Parameter.data``: reading it retires the packs, and as long as the script holds what it
read, nothing is packed. A change through a NumPy array that shares the memory is not seen.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Parameter

from slipstream.optimize.options import set_up


class Pack:
    """A packed weight and the stamps of the tensors it was made from; ``uses`` counts the calls it served."""

    __slots__ = ("bytes", "content", "stamps", "uses", "valid")

    def __init__(self, content: Any, stamps: tuple[Stamp, ...], size: int) -> None:
        self.content = content
        self.stamps = stamps
        self.bytes = size
        self.uses = 0
        self.valid = True

    def fits(self, *tensors: torch.Tensor | None) -> bool:
        """Whether it was made from just these tensors, as they are now."""
        if not self.valid:
            return False
        for stamp, tensor in zip(self.stamps, tensors, strict=True):
            if stamp is None:
                if tensor is not None:
                    return False
            elif (
                tensor is None
                or stamp[0]() is not tensor
                or stamp[1] != tensor._version
                or stamp[2] != tensor.data_ptr()
            ):
                return False
        return True


Stamp = tuple[Callable[[], torch.Tensor | None], int, int] | None

_DATA: Any = torch._C.TensorBase.__dict__["data"]

_packs: dict[int, dict[Any, Pack]] = {}
_aliases: dict[int, weakref.ref[torch.Tensor]] = {}
_short_lived: Counter[Any] = Counter()


def refusal(*tensors: torch.Tensor | None) -> str | None:
    """Why these parameters (or buffers) must not be packed now, or None where they may."""
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in (Parameter, torch.Tensor):
            return f"the weight is a {type(tensor).__name__}, not a plain parameter"
        if tensor.is_inference():
            return "the weight was made in inference mode and has no version counter"
        if not tensor.is_cpu or tensor.layout is not torch.strided:
            return "the weight is not a strided CPU tensor"
        alias = _aliases.get(id(tensor))
        if alias is not None and alias() is not None:
            return "the script holds weight.data, through which it can change unseen"
    return None


def find(kind: Any, *tensors: torch.Tensor | None) -> Pack | None:
    """A valid pack of this kind made from these tensors, perhaps by another module that shares them."""
    first = tensors[0]
    pack = _packs.get(id(first), {}).get(kind)
    return pack if pack is not None and pack.fits(*tensors) else None


def keep(kind: Any, content: Any, size: int, *tensors: torch.Tensor | None) -> Pack:
    """File a new pack under its first tensor; it goes when that tensor goes."""
    first = tensors[0]
    assert first is not None
    number = id(first)
    pack = Pack(content, tuple(_stamp(tensor) for tensor in tensors), size)
    kinds = _packs.get(number)
    if kinds is None:
        kinds = _packs[number] = {}
        weakref.finalize(first, _forget, number).atexit = False
    old = kinds.get(kind)
    if old is not None:
        _retire(kind, old)
    kinds[kind] = pack
    set_up.packed_bytes += size
    return pack


def lives_are_short(kind: Any) -> bool:
    """Whether packs of this kind (operator and shape) went unused before: then a weight has to come twice."""
    return _short_lived[kind] >= 2


def drop_all() -> None:
    """Forget every pack; whoever still holds one finds it invalid."""
    for kinds in _packs.values():
        for pack in kinds.values():
            pack.valid = False
    _packs.clear()
    _short_lived.clear()
    set_up.packed_bytes = 0


def _stamp(tensor: torch.Tensor | None) -> Stamp:
    return None if tensor is None else (weakref.ref(tensor), tensor._version, tensor.data_ptr())


def _forget(number: int) -> None:
    for kind, pack in _packs.pop(number, {}).items():
        _retire(kind, pack)


def _retire(kind: Any, pack: Pack) -> None:
    pack.valid = False
    set_up.packed_bytes -= pack.bytes
    if pack.uses < 2:
        _short_lived[kind] += 1
    else:
        del _short_lived[kind]


def watch_data() -> None:
    """Put the property over ``Parameter.data``; called once more, it does nothing."""
    if "data" not in Parameter.__dict__:
        watched = property(_read_data, _write_data, doc=torch.Tensor.data.__doc__)
        Parameter.data = watched  # type: ignore[misc, assignment]


def unwatch_data() -> None:
    if "data" in Parameter.__dict__:
        del Parameter.data  # type: ignore[misc]


def _read_data(parameter: Parameter) -> torch.Tensor:
    alias: torch.Tensor = _DATA.__get__(parameter)
    number = id(parameter)
    for pack in tuple(_packs.get(number, {}).values()):
        pack.valid = False

    def gone(ref: weakref.ref[torch.Tensor]) -> None:
        if _aliases.get(number) is ref:
            del _aliases[number]

    # What the script keeps may be a view of the alias: torch keeps the alias alive as the base of each view.
    _aliases[number] = weakref.ref(alias, gone)
    return alias


def _write_data(parameter: Parameter, value: torch.Tensor) -> None:
    for pack in tuple(_packs.get(id(parameter), {}).values()):
        pack.valid = False
    _DATA.__set__(parameter, value)
