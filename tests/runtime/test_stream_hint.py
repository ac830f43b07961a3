# SPDX-License-Identifier: Apache-2.0
"""Splitting and joining, without threads: nothing is dropped, nothing is guessed, every mismatch is said."""

import collections
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slipstream.errors import UsageError
from slipstream.runtime.stream_hint import MultiStreamModuleHint as Hint
from slipstream.runtime.stream_hint import join_results, shares, split_call


def rows(count, width=3):
    return torch.arange(float(count * width)).reshape(count, width)


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@pytest.mark.parametrize(
    ("total", "parts", "expected"),
    [(7, 3, [3, 2, 2]), (4, 3, [2, 1, 1]), (2, 2, [1, 1]), (5, 2, [3, 2]), (16, 2, [8, 8]), (3, 2, [2, 1])],
)
def test_shares(total, parts, expected):
    assert shares(total, parts) == expected


@given(batch=st.integers(0, 40), streams=st.integers(1, 12), dim=st.sampled_from([0, 1, -1, -2]))
def test_splitting_and_joining_gives_back_the_batch(batch, streams, dim):
    size = [3, 3]
    size[dim] = batch
    x = torch.arange(float(3 * batch)).reshape(size)
    calls = split_call(Hint(dim), (x,), {}, streams)
    assert len(calls) == max(1, min(streams, batch))
    sizes = [args[0].shape[dim] for args, _ in calls]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert torch.equal(join_results(dim, [args[0] for args, _ in calls]), x)


def test_what_the_hint_does_not_name_goes_to_every_stream_unchanged():
    scale, options, weights = 10.0, {"mode": "x"}, torch.ones(3)
    calls = split_call(Hint(0), (rows(4), scale), {"options": options, "weights": weights}, 2)
    for args, kwargs in calls:
        assert args[1] == scale
        assert kwargs["options"] is options
        assert kwargs["weights"] is weights
    assert torch.equal(torch.cat([args[0] for args, _ in calls]), rows(4))


@pytest.mark.parametrize(
    ("args", "kwargs", "where"),
    [
        ((rows(4), rows(4)), {}, r"argument\[1\]"),
        ((rows(4),), {"mask": rows(4)}, r"argument\['mask'\]"),
        ((rows(4),), {"more": {"deep": [rows(4)]}}, r"argument\['more'\]\['deep'\]\[0\]"),
    ],
)
def test_a_tensor_that_may_belong_to_the_batch_is_not_guessed_about(args, kwargs, where):
    with pytest.raises(UsageError, match=where + r": a tensor of shape \(4, 3\) that the hint does not name"):
        split_call(Hint(0), args, kwargs, 2)
    # With a word about it, either meaning is possible.
    if not kwargs:
        whole = split_call(Hint(0, None), args, {}, 2)
        assert all(call[1] is args[1] for call, _ in whole)
        parts = split_call(Hint(0, 0), args, {}, 2)
        assert [tuple(call[1].shape) for call, _ in parts] == [(2, 3), (2, 3)]


def test_a_batch_of_one_is_never_ambiguous():
    args = (rows(1), rows(1))
    assert split_call(Hint(0), args, {}, 2) == [(args, {})]


def test_unequal_batches_are_an_error_that_names_them():
    with pytest.raises(UsageError, match=r"batch sizes differ: argument\[0\] has 4, argument\['b'\] has 6"):
        split_call(Hint(0, b=0), (rows(4),), {"b": rows(6)}, 2)


def test_the_check_does_not_depend_on_the_number_of_streams():
    with pytest.raises(UsageError, match="batch sizes differ"):
        split_call(Hint(0, 0), (rows(4), rows(6)), {}, 1)


@pytest.mark.parametrize(
    ("hint", "args", "kwargs", "message"),
    [
        (Hint(0), (), {"x": rows(4)}, "the call has no tensor at any of its dimensions"),
        (Hint(None), (rows(4),), {}, "the call has no tensor at any of its dimensions"),
        (Hint(0, 0), (rows(4), 1.0), {}, r"argument\[1\]: a float cannot be split along dimension 0"),
        (Hint(2), (rows(4),), {}, r"argument\[0\]: a tensor of shape \(4, 3\) has no dimension 2"),
        (Hint((0, 0)), (rows(4),), {}, r"the hint is \(0, 0\) and the argument a Tensor; make them alike"),
        (Hint({"a": 0}), ([rows(4)],), {}, "and the argument a list; make them alike"),
    ],
)
def test_a_hint_that_does_not_match_is_an_error(hint, args, kwargs, message):
    with pytest.raises(UsageError, match=message):
        split_call(hint, args, kwargs, 2)


def test_nested_hints_keep_types_and_order():
    a, b, c, d, e = (rows(4) + 100 * i for i in range(5))
    ordered = collections.OrderedDict(z=d, a="kept")
    hint = Hint((0, [None, 0]), {"k": 0}, (0,), x={"z": 0}, left_out=0)
    args = ((a, [True, b]), {"k": c, "flag": None}, Pair(e, "second"))
    (first, first_kwargs), (second, second_kwargs) = split_call(hint, args, {"x": ordered}, 2)
    assert torch.equal(torch.cat([first[0][1][1], second[0][1][1]]), b)
    assert type(first[0]) is tuple
    assert type(first[0][1]) is list
    assert first[0][1][0] is True
    assert list(first[1]) == ["k", "flag"]
    assert isinstance(second[2], Pair)
    assert second[2].second == "second"
    assert type(first_kwargs["x"]) is collections.OrderedDict
    assert list(second_kwargs["x"]) == ["z", "a"]
    assert ordered["z"] is d  # the caller's own containers are not touched


def test_optional_arguments_may_be_none():
    calls = split_call(Hint(0, 0), (rows(4), None), {}, 2)
    assert [args[1] for args, _ in calls] == [None, None]


@pytest.mark.parametrize("bad", ["0", 0.0, True, torch.float32, (0, "x"), {"k": [False]}])
def test_what_a_hint_may_hold(bad):
    with pytest.raises(UsageError, match="not a dimension"):
        Hint(bad)
    with pytest.raises(UsageError, match=r"hint\['x'\]"):
        Hint(x=bad)


@pytest.mark.parametrize(
    ("hint", "tree"),
    [
        (Hint(0), 0),
        (Hint((0, None, 0)), (0, None, 0)),
        (Hint(y1=0, y2=1), {"y1": 0, "y2": 1}),
        (Hint(0, y1=0), (0, {"y1": 0})),
        (Hint(((0, 0), 0)), ((0, 0), 0)),
    ],
)
def test_the_tree_of_a_result(hint, tree):
    assert hint.of_result() == tree


@pytest.mark.parametrize("hint", [Hint(), Hint(0, 0)])
def test_a_result_has_one_hint(hint):
    with pytest.raises(UsageError, match="needs one positional hint"):
        hint.of_result()


def test_joining_nested_results():
    results = [(rows(2), {"y": rows(2), "n": 7}, None), (rows(1), {"y": rows(1), "n": 8}, None)]
    joined = join_results((0, {"y": 0, "n": None}, 0), results)
    assert torch.equal(joined[0], torch.cat([rows(2), rows(1)]))
    assert joined[1]["n"] == 7  # None in the hint: stream 0's
    assert joined[2] is None
    assert isinstance(join_results((0, 0), [Pair(rows(2), rows(2))] * 2), Pair)


@pytest.mark.parametrize(
    ("hint", "result", "message"),
    [
        (0, (rows(2), rows(2)), r"output_concat_hint 0: the result is a tuple with \[0, 1\]"),
        (0, torch.tensor(1.0), r"the result is a Tensor of shape \(\)"),
        (0, 1.5, "the result is a float"),
        ((0, 0), (rows(2), rows(2), rows(2)), r"the result is a tuple with \[0, 1, 2\]"),
        ({"a": 0}, {"a": rows(2), "lost": rows(2)}, r"the result is a dict with \['a', 'lost'\]"),
        ({"a": {"b": 0}}, {"a": rows(2)}, r"the result\['a'\] is a Tensor"),
    ],
)
@pytest.mark.parametrize("streams", [1, 2])
def test_no_part_of_a_result_is_dropped(hint, result, message, streams):
    with pytest.raises(UsageError, match=message):
        join_results(hint, [result] * streams)


def test_the_outputs_of_transformers_are_containers_too():
    outputs = pytest.importorskip("transformers.modeling_outputs", reason="transformers is not installed")
    results = [outputs.BaseModelOutput(last_hidden_state=rows(2)), outputs.BaseModelOutput(last_hidden_state=rows(1))]
    joined = join_results({"last_hidden_state": 0}, results)
    assert type(joined) is outputs.BaseModelOutput
    assert torch.equal(joined.last_hidden_state, torch.cat([rows(2), rows(1)]))
