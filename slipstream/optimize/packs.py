# SPDX-License-Identifier: Apache-2.0
"""Packed copies of parameters, beside the modules, valid for exactly the values that they were made from.

A pack carries a stamp of its parameter: identity, version counter, address. Together they see in-place
changes, optimizer steps, `load_state_dict` (also ``assign=True``) and re-assignment. What they cannot see is
a change through ``parameter.data``, which has a version counter of its own; therefore `watch_data` puts a
property over ``Parameter.data``: reading it retires the packs, and as long as the script holds what it
read, nothing is packed. Fused optimizers do not count versions either; after each step of an optimizer the
packs of its parameters are retired. A change through a NumPy array that shares the memory is not seen.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_post_hook

from slipstream.optimize.options import set_up


class Pack:
    """A packed weight and the stamps of the tensors it was made from; ``life.uses`` counts the calls it served.

    It belongs to the pieces that answer from it, and goes with the last of them. It holds its tensors rather
    than weak references to them, which `torch.utils.swap_tensors` would refuse.
    """

    __slots__ = ("__weakref__", "content", "life", "stamps", "valid")

    def __init__(self, content: Any, stamps: tuple[Stamp, ...], life: Life) -> None:
        self.content = content
        self.stamps = stamps
        self.life = life
        self.valid = True

    def fits(self, tensors: tuple[torch.Tensor | None, ...]) -> bool:
        """Whether it was made from the first of these tensors, as many as it has stamps, as they are now."""
        if not self.valid:
            return False
        for (source, version, pointer), tensor in zip(self.stamps, tensors, strict=False):
            if source is not tensor:
                return False
            if tensor is not None and (version != tensor._version or pointer != tensor.data_ptr()):
                return False
        return True


class Life:
    """What is remembered of a pack when it goes."""

    __slots__ = ("bytes", "kind", "uses")

    def __init__(self, kind: Any, size: int) -> None:
        self.kind = kind
        self.bytes = size
        self.uses = 0


Stamp = tuple[torch.Tensor | None, int, int]

_DATA: Any = torch._C.TensorBase.__dict__["data"]

_packs: weakref.WeakValueDictionary[tuple[int, Any], Pack] = weakref.WeakValueDictionary()
_by_tensor: dict[int, weakref.WeakSet[Pack]] = {}
_aliases: dict[int, weakref.ref[torch.Tensor]] = {}
_short_lived: Counter[Any] = Counter()
_hooks: list[Any] = []
_lock = threading.RLock()  # a pack may go, and _retire run, wherever memory is collected
_spoils = [0]
_moves = [0]


def _in_child() -> None:
    """Another thread may have held the lock, and is not there after a fork."""
    _lock._at_fork_reinit()  # type: ignore[attr-defined]


os.register_at_fork(after_in_child=_in_child)


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
    pack = _packs.get((id(tensors[0]), kind))
    return pack if pack is not None and pack.fits(tensors) else None


def make(kind: Any, build: Callable[[], tuple[Any, int]], *tensors: torch.Tensor | None) -> Pack:
    """Pack these tensors by ``build``, which gives content and bytes, and let the pack be found; whoever asks holds it.

    Stamps are taken before, and a look through ``.data`` meanwhile spoils the pack: what another thread changes while
    the weights are being read makes a pack that does not fit.
    """
    stamps, seen = tuple(_stamp(tensor) for tensor in tensors), _spoils[0]
    content, size = build()
    life = Life(kind, size)
    pack = Pack(content, stamps, life)
    numbers = [id(tensor) for tensor in tensors if tensor is not None]
    # before the sets below hold it: callbacks run last made first, and this one looks whether the sets are empty
    weakref.finalize(pack, _retire, life, numbers).atexit = False
    with _lock:
        _packs[id(tensors[0]), kind] = pack
        for number in numbers:
            _by_tensor.setdefault(number, weakref.WeakSet()).add(pack)
        set_up.packed_bytes += size
        set_up.most_packed_bytes = max(set_up.most_packed_bytes, set_up.packed_bytes)
    if _spoils[0] != seen:
        pack.valid = False
    return pack


def rehouse(pack: Pack, content: Any) -> None:
    """Let a pack answer from equal content in memory that another pack accounts for."""
    with _lock:
        pack.content = content
        _moves[0] += 1
        set_up.packed_bytes -= pack.life.bytes
        pack.life.bytes = 0


def of_nothing(kind: Any) -> Pack:
    """For what answers without packing: it fits whatever the tensors are."""
    return Pack(None, (), Life(kind, 0))


def changes() -> tuple[int, int]:
    """Differs from what it was where a pack may have been made invalid, or given other memory, without a change of a stamp."""
    return _spoils[0], _moves[0]


def lives_are_short(kind: Any) -> bool:
    """Whether packs of this kind (operator and shape) went unused before: then a weight has to come twice."""
    return _short_lived[kind] >= 2


def drop_all() -> None:
    """Make every pack invalid, for whoever still holds one."""
    _spoils[0] += 1
    with _lock:  # a capture may be packing beside
        for pack in tuple(_packs.values()):
            pack.valid = False
        _packs.clear()
        _short_lived.clear()


def _stamp(tensor: torch.Tensor | None) -> Stamp:
    return (None, 0, 0) if tensor is None else (tensor, tensor._version, tensor.data_ptr())


def _retire(life: Life, numbers: list[int]) -> None:
    with _lock:
        set_up.packed_bytes -= life.bytes
        for number in numbers:
            if not _by_tensor.get(number, True):
                _by_tensor.pop(number, None)
        if life.uses < 2:
            _short_lived[life.kind] += 1
        else:
            del _short_lived[life.kind]


def spoil(parameter: torch.Tensor) -> None:
    """No pack made from this parameter may be used again, nor one that is just being made.

    They are forgotten here, so that the second of many steps of an optimizer finds nothing to do.
    """
    _spoils[0] += 1
    with _lock:
        for pack in tuple(_by_tensor.pop(id(parameter), ())):
            pack.valid = False


def exchange(parameter: torch.Tensor, other: torch.Tensor, pointer: int) -> None:
    """Give a parameter the memory of ``other``, which holds the same values; its packs stay as valid as they were."""
    _DATA.__set__(parameter, other)
    with _lock:
        for pack in tuple(_by_tensor.get(id(parameter), ())):
            pack.stamps = tuple(
                (source, version, parameter.data_ptr()) if source is parameter and at == pointer else (source, version, at)
                for source, version, at in pack.stamps
            )


def watch_data() -> None:
    """Put the property over ``Parameter.data`` and look behind optimizers; called once more, it does nothing."""
    if "data" not in Parameter.__dict__:
        watched = property(_read_data, _write_data, doc=torch.Tensor.data.__doc__)
        Parameter.data = watched  # type: ignore[misc, assignment]
        _hooks.append(register_optimizer_step_post_hook(_after_step))


def unwatch_data() -> None:
    if "data" in Parameter.__dict__:
        del Parameter.data  # type: ignore[misc]
    while _hooks:
        _hooks.pop().remove()


def _after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    """Fused optimizers (``fused=True``, the default of transformers' Trainer) leave version counters as they were."""
    _spoils[0] += 1
    if _by_tensor:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in _by_tensor:
                    spoil(parameter)


def _read_data(parameter: Parameter) -> torch.Tensor:
    alias: torch.Tensor = _DATA.__get__(parameter)
    number = id(parameter)
    spoil(parameter)

    def gone(ref: weakref.ref[torch.Tensor]) -> None:
        if _aliases.get(number) is ref:
            del _aliases[number]

    # What the script keeps may be a view of the alias: torch keeps the alias alive as the base of each view.
    _aliases[number] = weakref.ref(alias, gone)
    return alias


def _write_data(parameter: Parameter, value: torch.Tensor) -> None:
    if value is not parameter:  # which it is where `module.to(device)`, before each call of many a script, moves nothing
        spoil(parameter)
    _DATA.__set__(parameter, value)
