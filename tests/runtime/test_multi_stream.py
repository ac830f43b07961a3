# SPDX-License-Identifier: Apache-2.0
"""One module on several groups of CPUs gives what the module gives, and leaves the caller as it was."""

import copy
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch

from slipstream import runtime
from slipstream.errors import UsageError
from slipstream.runtime import CPUPool, MultiStreamModule, MultiStreamModuleHint, get_default_num_streams

CPUS = sorted(os.sched_getaffinity(0))
two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="this process may use one CPU only")


@pytest.fixture(params=[1, 2])
def streams(request):
    if request.param > len(CPUS):
        pytest.skip("this process may use one CPU only")
    return request.param


@pytest.fixture(autouse=True)
def caller_is_untouched():
    before = os.sched_getaffinity(0), torch.get_num_threads()
    yield
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == before


def where(x):
    return tuple(sorted(os.sched_getaffinity(0))), torch.get_num_threads(), x.shape[0]


def places(cpu_pool, num_streams, batch=12):
    return MultiStreamModule(where, num_streams, cpu_pool, concat_output=False)(torch.ones(batch, 1))


@pytest.mark.parametrize("batch", [0, 1, 2, 5, 16])
def test_the_result_is_the_modules_own(streams, batch):
    module, x = torch.nn.Linear(6, 5).eval(), torch.randn(batch, 6)
    with torch.no_grad():
        torch.testing.assert_close(MultiStreamModule(module, streams)(x), module(x))


@two_cpus
def test_each_stream_runs_on_its_own_cpus():
    assert places(CPUPool(CPUS[:2]), 2) == [((CPUS[0],), 1, 6), ((CPUS[1],), 1, 6)]


def test_one_stream_has_the_whole_pool():
    assert places(CPUPool(), 1) == [(tuple(CPUS), len(CPUS), 12)]


@two_cpus
def test_a_batch_smaller_than_the_streams_uses_the_first():
    assert [place[2] for place in places(CPUPool(CPUS[:2]), 2, batch=1)] == [1]
    assert [place[2] for place in places(CPUPool(CPUS[:2]), 2, batch=5)] == [3, 2]


def test_streams_get_consecutive_cpus(monkeypatch):
    """Three CPUs on two streams, and seven on three, on a machine that need not have them."""
    monkeypatch.setattr("slipstream.runtime.cpu_pool.usable_cpus", lambda: frozenset(range(7)))
    for count, streams, expected in [(3, 2, [[0, 1], [2]]), (7, 3, [[0, 1, 2], [3, 4], [5, 6]])]:
        module = MultiStreamModule(where, streams, CPUPool(range(count)))
        assert [thread.cpu_pool.core_ids for thread in module._threads] == expected


def test_auto_is_one_stream_for_each_cpu():
    pool = CPUPool()
    assert MultiStreamModule(where, cpu_pool=pool).get_stream_number() == get_default_num_streams(pool) == len(CPUS)


def test_more_streams_than_cpus_become_fewer_aloud():
    with pytest.warns(UserWarning, match=rf"{len(CPUS)} instead of 9"):
        assert MultiStreamModule(where, 9).get_stream_number() == len(CPUS)


def test_the_default_pool_is_made_at_the_call_not_at_import():
    code = """
import os, slipstream.runtime.multi_stream as ms
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
print(ms.MultiStreamModule(len).cpu_pool.core_ids == list(os.sched_getaffinity(0)))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


@pytest.mark.parametrize("bad", ["abc", "auto", 0, -1, True, 1.0, None])
def test_what_the_number_of_streams_may_be(bad):
    with pytest.raises(UsageError, match="num_streams"):
        MultiStreamModule(where, bad)


def test_other_bad_arguments():
    with pytest.raises(UsageError, match="model 3"):
        MultiStreamModule(3)
    with pytest.raises(UsageError, match="not a CPUPool"):
        MultiStreamModule(where, 1, [0])
    with pytest.raises(UsageError, match="input_split_hint 0: not a MultiStreamModuleHint"):
        MultiStreamModule(where, 1, input_split_hint=0)
    with pytest.raises(UsageError, match="needs one positional hint"):
        MultiStreamModule(where, 1, output_concat_hint=MultiStreamModuleHint(0, 0))


def test_arguments_outside_the_hint_are_not_dropped(streams):
    module = MultiStreamModule(lambda x, scale=1.0: x * scale, streams)
    x = torch.randn(4, 2)
    assert torch.equal(module(x, scale=10.0), x * 10)
    assert torch.equal(module(x, 10.0), x * 10)


def test_hints_for_several_inputs_and_outputs(streams):
    hint, out = MultiStreamModuleHint(0, None, 0, k={"b": 1}), MultiStreamModuleHint((0, None), y=1)
    module = MultiStreamModule(lambda a, flag, c, k: ((a + c, flag), {"y": k["b"] * 2}), streams, None, True, hint, out)
    a, c, b = torch.randn(5, 2), torch.randn(5, 2), torch.randn(2, 5)
    (total, flag), rest = module(a, "flag", c, k={"b": b})
    assert torch.equal(total, a + c)
    assert flag == "flag"
    assert torch.equal(rest["y"], b * 2)


def test_without_joining_there_is_a_list(streams):
    results = MultiStreamModule(lambda x: x.shape[0], streams, concat_output=False)(torch.ones(4, 1))
    assert results == [4 // streams] * streams


def test_modes_travel(streams):
    def modes(_):
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")

    module = MultiStreamModule(modes, streams, concat_output=False)
    x = torch.ones(2, 1)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert module(x) == [(False, True, True)] * streams
    assert module(x) == [(True, False, False)] * streams


def test_gradients_reach_input_and_weights(streams):
    model, x = torch.nn.Linear(3, 2), torch.randn(4, 3, requires_grad=True)
    expected = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    got = torch.autograd.grad(MultiStreamModule(model, streams)(x).square().sum(), [x, *model.parameters()])
    torch.testing.assert_close(got, expected)


@two_cpus
def test_an_exception_waits_for_all_streams():
    release, ended = threading.Event(), []

    def model(x):
        if x[0, 0] == 0:
            release.set()
            raise KeyError("first stream")
        release.wait(60)
        ended.append(x.shape[0])
        return x

    module = MultiStreamModule(model, 2)
    with pytest.raises(KeyError, match="first stream"):
        module(torch.arange(4.0).reshape(4, 1))
    assert ended == [2]
    assert module(torch.ones(4, 1)).shape == (4, 1)  # and it goes on working


def test_calls_from_several_threads_keep_their_own_inputs(streams):
    module, results = MultiStreamModule(lambda x: x * 2, streams), {}

    def call(value):
        results[value] = module(torch.full((4, 1), float(value)))

    threads = [threading.Thread(target=call, args=(value,)) for value in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[value], torch.full((4, 1), 2.0 * value)) for value in range(16))


def test_streams_within_streams(streams):
    module = torch.nn.Linear(3, 3).eval()
    nested, x = MultiStreamModule(MultiStreamModule(module, streams), streams), torch.randn(8, 3)
    with torch.no_grad():
        torch.testing.assert_close(nested(x), module(x))


def test_it_is_a_module_like_others(streams):
    model, x = torch.nn.Linear(3, 2).eval(), torch.randn(4, 3)
    module = MultiStreamModule(model, streams)
    assert list(module.state_dict()) == ["model.weight", "model.bias"]
    module.train()
    assert model.training
    module.eval()
    with torch.no_grad():
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            torch.testing.assert_close(other(x), model(x))
            assert other.model is not model
        model.weight.zero_()
        torch.testing.assert_close(module(x), model.bias.expand(4, 2))


def test_the_benchmark_module_runs_the_same_call_on_every_stream(streams):
    seen = []

    def model(x):
        seen.append((x.shape[0], tuple(os.sched_getaffinity(0))))
        return x + 1

    result = runtime._MultiStreamBenchmarkModule(model, streams)(torch.zeros(4, 1))
    assert torch.equal(result, torch.ones(4, 1))
    assert [rows for rows, _ in seen] == [4] * streams
    assert len({mask for _, mask in seen}) == streams


def test_the_names_are_there_and_torch_comes_only_with_multi_stream():
    code = """
import sys
from slipstream import runtime
from slipstream.runtime import CPUPool, MultiStreamModuleHint, Task, pin
assert 'torch' not in sys.modules
assert set(runtime.__all__) <= set(dir(runtime))
for name in runtime.__all__:
    assert getattr(runtime, name).__name__ == name
assert 'torch' in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match=r"module 'slipstream\.runtime' has no attribute 'CPUPools'"):
        _ = runtime.CPUPools
