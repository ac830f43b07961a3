# SPDX-License-Identifier: Apache-2.0
"""When two outputs say the same, and which of many pieces spoil a whole."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.launcher.codeless.outputs import judge, named_times
from slipstream.launcher.codeless.sift import Sieve


def compare(plain, ours, tolerance=1e-3, **more):
    return judge({0: plain.encode()}, {0: ours.encode()}, tolerance, **more)


@pytest.mark.parametrize(
    ("plain", "ours"),
    [
        ("loss 0.51234", "loss 0.51240"),
        ("[ 1.0000, -2.500]", "[1.0004, -2.501]"),
        ("x 1.5e-3 y", "x 1.5004e-3 y"),
        ("score 0.12", "score 0.13"),  # one in the last digit that was printed
        ("1e-7", "-3e-8"),  # nothing but rounding
        ("throughput: 12.5 it/s", "throughput: 99 it/s"),
        ('{"first_s": 2.91, "median_s": 1.3}', '{"first_s": 0.4, "median_s": 0.2}'),
        ("took 12 ms", "took 3 ms"),
        ("latency: 4 ms, p99 5 ms", "latency: 2 ms, p99 9 ms"),
        ("'eval_runtime': 3.2, 'eval_samples_per_second': 10.1", "'eval_runtime': 1.2, 'eval_samples_per_second': 30.7"),
        ("inference time (s): [1.25, 2.5]", "inference time (s): [0.5, 0.75]"),
    ],
)
def test_these_say_the_same(plain, ours):
    verdict = compare(plain, ours)
    assert verdict.same and not verdict.identical and not verdict.diff


@pytest.mark.parametrize(
    ("plain", "ours"),
    [
        ("label 3", "label 4"),
        ("tokens 10000001 1", "tokens 10000002 1"),
        ("loss 0.5123", "loss 0.5223"),
        ("cat", "dog"),
        ("one\ntwo", "one"),
        ("nan", "0.5"),
        ("float32", "float16"),
        ("2 cats 1.0", "3 cats 1.0"),
    ],
)
def test_these_do_not(plain, ours):
    verdict = compare(plain, ours)
    assert not verdict.same and verdict.differing
    assert verdict.diff[0].startswith("--- plain")
    assert not compare(ours, plain).same


def test_tolerance_zero_lets_no_digit_pass():
    assert not compare("0.12", "0.13", 0.0).same
    assert compare("0.12", "0.12", 0.0).identical


def test_lines_that_vary_by_themselves_are_not_looked_at():
    assert compare("a\nseed 4\nb", "a\nseed 5\nb", noise=frozenset({(0, 1)})).same


def test_the_diff_shows_differences_only():
    verdict = compare("took 4 ms\nlabel 1\ntook 4 ms", "took 3 ms\nlabel 2\ntook 5 ms")
    assert [line for line in verdict.diff if line[0] in "+-"][2:] == ["-label 1", "+label 2"]
    assert verdict.measured == 2 and verdict.differing == ((0, 1),)


def test_words():
    assert compare("a", "a").words(0.1) == "byte-identical"
    assert compare("took 4 ms", "took 3 ms").words(0.1) == "the same but for times and rates in 1 line"
    assert compare("1.25", "1.24", 0.1).words(0.1) == "the same within 0.1 (largest relative difference 0.008)"
    assert compare("1", "2").words(0.1) == "DIFFERENT in 1 line"


def test_times_that_are_printed_by_name():
    text = b'{"first_s": 2.9, "median_s": 1.3}\nwait_ms=4e1\n{"median_s": 1.2, "labels": 3}'
    assert named_times(text) == {"first_s": 2.9, "median_s": 1.2, "wait_ms": 40.0}


def test_an_instance_that_said_nothing_differs():
    assert not judge({0: b"a\n", 1: b"a\n"}, {0: b"a\n", 1: b""}, 1e-3).same


@given(st.text(), st.floats(0, 0.5))
def test_whatever_is_printed_says_the_same_as_itself(text, tolerance):
    assert compare(text, text, tolerance).identical


@given(st.integers(1, 300), st.integers(0, 2**32))
def test_every_culprit_is_found_and_nothing_else(count, seed):
    names = [f"layer.{number}" for number in range(count)]
    bad = set(random.Random(seed).sample(names, min(count, 1 + seed % 3)))
    tried = []

    def works(on):
        tried.append(set(on))
        return not bad & set(on)

    sieve = Sieve(works, most=10_000)
    sieve.sift(names, known_bad=True)
    assert set(sieve.culprits) == bad and len(sieve.culprits) == len(bad)
    assert sorted(sieve.good) == sorted(set(names) - bad) and not sieve.untried
    assert not sieve.good or set(sieve.good) in tried  # what is left on has been seen to work as it stands
    assert sieve.trials <= 2 * len(bad) * (1 + count.bit_length())


@given(st.integers(2, 100), st.integers(0, 2**32))
def test_pieces_that_spoil_it_only_together(count, seed):
    names = [str(number) for number in range(count)]
    pair = set(random.Random(seed).sample(names, 2))
    sieve = Sieve(lambda on: not pair <= set(on), most=10_000)
    sieve.sift(names, known_bad=True)
    assert len(sieve.culprits) == 1 and set(sieve.culprits) <= pair


@given(st.integers(1, 100), st.integers(0, 12))
def test_what_is_not_tried_is_left_out(count, most):
    names = [str(number) for number in range(count)]
    sieve = Sieve(lambda on: "7" not in on, most=most)
    sieve.sift(names, known_bad=True)
    assert sorted([*sieve.good, *sieve.culprits, *sieve.untried]) == sorted(names)
    assert "7" not in sieve.good and sieve.trials <= most
