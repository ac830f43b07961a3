# SPDX-License-Identifier: Apache-2.0
"""What holds for every plan on every machine: random topologies, random requests."""

import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.errors import PlanError
from slipstream.launcher.options import Placement
from slipstream.launcher.plan import make_plan
from slipstream.runtime.topology import Cpu, Node, Topology


@st.composite
def topologies(draw):
    """Up to three nodes of up to five cores of one or two threads; CPU numbers in any order."""
    sizes = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3).filter(any))
    cores = [node for node, size in enumerate(sizes) for _ in range(size)]
    threads = [draw(st.integers(1, 2)) for _ in cores]
    efficient = [draw(st.booleans()) if draw(st.booleans()) else False for _ in cores]
    numbers = iter(draw(st.permutations(range(sum(threads)))))
    members = [
        Cpu(next(numbers), core, node, node, 2 * node + core % 2, efficient[core])
        for core, node in enumerate(cores)
        for _ in range(threads[core])
    ]
    nodes = tuple(Node(number, has_cpu=bool(size)) for number, size in enumerate(sizes))
    quota = draw(st.none() | st.floats(0.5, 10))
    return Topology(tuple(sorted(members, key=lambda cpu: cpu.number)), nodes, quota)


PLACEMENTS = st.builds(
    Placement,
    ninstances=st.integers(0, 7),
    ncores=st.integers(-1, 6),
    use_logical_cores=st.booleans(),
    use_e_cores=st.booleans(),
    strategy=st.sampled_from(["scatter", "close"]),
    group_by=st.sampled_from(["none", "node", "l3", "socket"]),
    mode=st.sampled_from(["", "", "", "latency", "throughput"]),
).map(lambda one: replace(one, ninstances=0, ncores=0, group_by="node") if one.mode else one)


def plan_or_none(topology, placement):
    try:
        return make_plan(topology, placement)
    except PlanError as error:
        assert "\n" not in str(error)
        return None


@settings(max_examples=400, deadline=None)
@given(topologies(), PLACEMENTS)
def test_plan(topology, placement):
    made = plan_or_none(topology, placement)
    if made is None:
        return
    taken = [set(one.cpus) for one in made.instances]
    everything = set().union(*taken)
    assert taken and all(taken)
    assert sum(map(len, taken)) == len(everything), "instances are disjoint"
    assert everything <= set(topology.numbers())
    if placement.ninstances:
        assert len(taken) == placement.ninstances
    if placement.ncores > 0:
        assert all(len(one) == placement.ncores for one in taken)
    elif not placement.mode and placement.group_by == "none":
        cores = [len({cpu.core for cpu in topology.cpus if cpu.number in one}) for one in taken]
        assert max(cores) - min(cores) <= (1 if placement.ncores == -1 else 0)
    core_of = {cpu.number: cpu.core for cpu in topology.cpus}
    for one, other in itertools.combinations(taken, 2):
        assert not {core_of[cpu] for cpu in one} & {core_of[cpu] for cpu in other}, "no core is shared"
    left = [cpu for item in made.left_out for cpu in item.cpus]
    assert sorted([*left, *everything]) == sorted(topology.numbers()), "every CPU is accounted for, once"
    if placement.group_by == "node":
        assert all(len(one.nodes) == 1 for one in made.instances)
    if topology.quota is not None:
        assert len(everything) <= max(topology.quota, 2), "one core at least, whatever the quota"
    assert all(one.threads == len(one.cpus) for one in made.instances)


@settings(max_examples=100, deadline=None)
@given(topologies(), PLACEMENTS)
def test_same_request_same_plan(topology, placement):
    assert plan_or_none(topology, placement) == plan_or_none(topology, placement)


def fits_in_nodes(free, sizes):
    """By trying everything: whether pieces of these sizes can be laid into nodes with so many cores each."""
    if not sizes:
        return True
    return any(
        free[node] >= sizes[0] and fits_in_nodes([*free[:node], free[node] - sizes[0], *free[node + 1 :]], sizes[1:])
        for node in range(len(free))
    )


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.integers(0, 6),
    st.integers(-1, 6),
    st.sampled_from(["scatter", "close"]),
    st.integers(0, 1),
)
def test_no_node_is_crossed_where_the_same_sizes_fit_without(sizes, ninstances, ncores, strategy, caches):
    members = [node for node, size in enumerate(sizes) for _ in range(size)]
    cpus = tuple(Cpu(number, number, node, node, 2 * node + caches * number % 2) for number, node in enumerate(members))
    topology = Topology(cpus, tuple(Node(number) for number in range(len(sizes))))
    made = plan_or_none(topology, Placement(ninstances=ninstances, ncores=ncores, strategy=strategy))
    if made is None:
        return
    crossing = any(len(one.nodes) > 1 for one in made.instances)
    assert crossing == (not fits_in_nodes(sizes, sorted((len(one.cpus) for one in made.instances), reverse=True)))
