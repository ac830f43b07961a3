# SPDX-License-Identifier: Apache-2.0
"""How the arguments of a call are split over streams, and how the streams' results become one again.

A hint mirrors what it describes. At each place stands a dimension (split or concatenate along it), or None
(give it whole to every stream; take it from stream 0), or a tuple, list or dict of these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from slipstream.errors import UsageError

if TYPE_CHECKING:
    import torch


class MultiStreamModuleHint:
    """The hint for a call (positional and keyword arguments) or for a result.

    For a result: one positional hint, or keyword hints for a dict, or both for a pair (result, dict). Raises
    UsageError for a hint that is not made of dimensions (int), None, tuples, lists and dicts.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs
        for where, hint in [*_leaves(args, "hint"), *_leaves(kwargs, "hint")]:
            if hint is not None and (isinstance(hint, bool) or not isinstance(hint, int)):
                rule = "not a dimension (int), None, or a tuple, list or dict of these"
                raise UsageError.of(where, repr(hint), rule)

    def __repr__(self) -> str:
        parts = [*map(repr, self.args), *(f"{name}={hint!r}" for name, hint in self.kwargs.items())]
        return f"MultiStreamModuleHint({', '.join(parts)})"

    def of_result(self) -> Any:
        """The tree of hints that a result has to match."""
        if len(self.args) > 1 or not (self.args or self.kwargs):
            rule = "needs one positional hint, or keyword hints, or one of each"
            raise UsageError.of("output_concat_hint", self, rule, "for a tuple write MultiStreamModuleHint((0, 0))")
        if not self.kwargs:
            return self.args[0]
        return (self.args[0], self.kwargs) if self.args else self.kwargs


Call = tuple[tuple[Any, ...], dict[str, Any]]


def split_call(hint: MultiStreamModuleHint, args: tuple[Any, ...], kwargs: dict[str, Any], streams: int) -> list[Call]:
    """The calls that take the place of one: at most ``streams``, and no more than the batch has samples.

    Stream i gets its share of every tensor that the hint splits, the first streams one sample more where it
    does not divide. Everything else, named by the hint or not, goes to every stream unchanged.

    Raises UsageError when a hint does not match its argument, when tensors to be split differ in size, when
    there is nothing to split, and when a tensor that the hint does not name has the size of the batch:
    whether it is part of the batch cannot be known then.
    """
    to_split: dict[str, tuple[int, torch.Tensor]] = {}
    unnamed: list[tuple[str, Any]] = []

    def note(dim: int, tensor: torch.Tensor, where: str) -> torch.Tensor:
        to_split[where] = (dim, tensor)
        return tensor

    _walk_call(hint, args, kwargs, note, lambda where, value: unnamed.append((where, value)))
    batch = _batch_size({where: tensor.shape[dim] for where, (dim, tensor) in to_split.items()}, hint)
    used = max(1, min(streams, batch))
    if used == 1:
        return [(args, kwargs)]
    for where, value in unnamed:
        _refuse_batch_sized(value, where, batch, {0, *(dim for dim, _ in to_split.values())})
    sizes = shares(batch, used)
    pieces = {where: tensor.split(sizes, dim) for where, (dim, tensor) in to_split.items()}

    def call_of(stream: int) -> Call:
        return _walk_call(hint, args, kwargs, lambda dim, value, where: pieces[where][stream])

    return [call_of(stream) for stream in range(used)]


def join_results(hint: Any, results: list[Any], where: str = "the result") -> Any:
    """One result out of those of the streams, as the hint tree says.

    Raises UsageError when the results do not have the hint's form; nothing that a stream returned is left
    out but by a None in the hint.
    """
    if hint is None:
        return results[0]
    if isinstance(hint, int):
        return _concatenate(hint, results, where)
    for result in results:
        if not _alike(hint, result) or set(_keys(hint)) != set(_keys(result)):
            raise _result_error(hint, result, where)
    parts = {
        key: join_results(hint[key], [result[key] for result in results], f"{where}[{key!r}]") for key in _keys(results[0])
    }
    return _rebuilt(results[0], parts)


def shares(total: int, parts: int) -> list[int]:
    """``total`` dealt to ``parts``, the first ones getting one more: 7 to 3 is 3, 2, 2."""
    return [total // parts + (part < total % parts) for part in range(parts)]


AtDimension = Callable[[int, Any, str], Any]
AtUnnamed = Callable[[str, Any], None]


def _walk_call(
    hint: MultiStreamModuleHint,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    at_dimension: AtDimension,
    at_unnamed: AtUnnamed = lambda where, value: None,
) -> Call:
    return (
        _walk(hint.args, args, "argument", at_dimension, at_unnamed),
        _walk(hint.kwargs, kwargs, "argument", at_dimension, at_unnamed),
    )


def _walk(hint: Any, value: Any, where: str, at_dimension: AtDimension, at_unnamed: AtUnnamed) -> Any:
    """``value`` rebuilt with the result of ``at_dimension`` wherever the hint holds a dimension.

    None stays None, also where a tensor may stand: that is how optional arguments are left out.
    """
    if hint is None or value is None:
        return value
    if isinstance(hint, int):
        _require_dimension(hint, value, where)
        return at_dimension(hint, value, where)
    if not _alike(hint, value):
        raise UsageError(f"{where}: the hint is {hint!r} and the argument a {type(value).__name__}; make them alike")
    named = set(_keys(hint))
    parts = {}
    for key in _keys(value):
        place = f"{where}[{key!r}]"
        if key in named:
            parts[key] = _walk(hint[key], value[key], place, at_dimension, at_unnamed)
        else:
            parts[key] = value[key]
            at_unnamed(place, value[key])
    return _rebuilt(value, parts)


def _batch_size(sizes: dict[str, int], hint: MultiStreamModuleHint) -> int:
    if not sizes:
        raise UsageError(f"{hint}: the call has no tensor at any of its dimensions; name one that is to be split")
    batch = next(iter(sizes.values()))
    if any(size != batch for size in sizes.values()):
        listed = ", ".join(f"{where} has {size}" for where, size in sizes.items())
        raise UsageError(f"batch sizes differ: {listed}; put None into the hint for what is not a batch")
    return batch


def _refuse_batch_sized(value: Any, where: str, batch: int, dims: set[int]) -> None:
    import torch

    if isinstance(value, torch.Tensor):
        if any(-value.dim() <= dim < value.dim() and value.shape[dim] == batch for dim in dims):
            shape = tuple(value.shape)
            raise UsageError(
                f"{where}: a tensor of shape {shape} that the hint does not name, in a batch of {batch}; "
                "name in the hint its dimension to split along, or None to give it whole to every stream"
            )
    elif isinstance(value, list | tuple | Mapping):
        for key in _keys(value):
            _refuse_batch_sized(value[key], f"{where}[{key!r}]", batch, dims)


def _require_dimension(dim: int, value: Any, where: str) -> None:
    import torch

    if not isinstance(value, torch.Tensor):
        remedy = "put None into the hint to give it whole to every stream"
        raise UsageError(f"{where}: a {type(value).__name__} cannot be split along dimension {dim}; {remedy}")
    if not -value.dim() <= dim < value.dim():
        raise UsageError(f"{where}: a tensor of shape {tuple(value.shape)} has no dimension {dim} to split along")


def _concatenate(dim: int, results: list[Any], where: str) -> Any:
    import torch

    if all(result is None for result in results):
        return None
    for result in results:
        if not isinstance(result, torch.Tensor) or not -result.dim() <= dim < result.dim():
            raise _result_error(dim, result, where)
    return results[0] if len(results) == 1 else torch.cat(results, dim)


def _result_error(hint: Any, result: Any, where: str) -> UsageError:
    size = f" of shape {tuple(result.shape)}" if hasattr(result, "shape") else ""
    keys = f" with {_keys(result)}" if isinstance(result, list | tuple | Mapping) else ""
    return UsageError(
        f"output_concat_hint {hint!r}: {where} is a {type(result).__name__}{size}{keys}; "
        "give a hint of its form (None takes stream 0's), or concat_output=False for the list of all results"
    )


def _alike(hint: Any, value: Any) -> bool:
    return isinstance(value, Mapping if isinstance(hint, Mapping) else list | tuple)


def _keys(value: Any) -> list[Any]:
    return list(value.keys()) if isinstance(value, Mapping) else list(range(len(value)))


def _rebuilt(value: Any, parts: dict[Any, Any]) -> Any:
    """A container of the type of ``value`` with other items."""
    if isinstance(value, Mapping):
        new: Any = copy.copy(value)
        for key, part in parts.items():
            new[key] = part
        return new
    return type(value)(*parts.values()) if hasattr(value, "_fields") else type(value)(parts.values())


def _leaves(hint: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(hint, list | tuple | Mapping):
        for key in _keys(hint):
            yield from _leaves(hint[key], f"{where}[{key!r}]")
    else:
        yield where, hint
