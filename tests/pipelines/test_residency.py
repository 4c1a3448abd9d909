"""Who stays in memory and who leaves: with a clock that is set by hand and models that are sizes alone."""

import random
import threading
from types import SimpleNamespace

import pytest
import torch

from pipelines.residency import MemoryPolicy, Place, Residency, weight_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NAMES = ("one", "two", "three")


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Network:
    """A network that knows its size and where it was moved last."""

    def __init__(self, size, at="cuda"):
        self.size, self.at = size, at

    def to(self, device):
        self.at = torch.device(device).type


def model(*networks):
    return SimpleNamespace(networks=networks)


def size(models):
    return sum(network.size for network in {id(n): n for m in models for n in m.networks}.values())


def residency(policy, clock, device=CPU, keep=(), names=NAMES):
    return Residency({name: Place(device, name in keep) for name in names}, policy, clock, size)


def present(held, names=NAMES):
    return [name for name in names if held.present(name)]


def admit_all(held, clock, sizes=(10, 10, 10)):
    for clock.now, (name, bytes_) in enumerate(zip(NAMES, sizes, strict=True)):
        held.admit(name, model(Network(bytes_)))


def test_nothing_leaves_without_a_policy():
    held = residency(MemoryPolicy(), clock := Clock())
    admit_all(held, clock)
    clock.now = 1e9
    assert held.unload_idle() == []
    assert present(held) == list(NAMES)


def test_the_longest_unused_leaves_and_no_more_than_must():
    held = residency(MemoryPolicy(budget=25), clock := Clock())
    admit_all(held, clock)
    assert present(held) == ["two", "three"]
    clock.now = 5
    held.admit("one", model(Network(15)))
    assert present(held) == ["one", "three"]


def test_a_release_counts_as_use():
    held = residency(MemoryPolicy(budget=25), clock := Clock())
    for clock.now, name in enumerate(NAMES[:2]):
        held.admit(name, model(Network(10)))
    held.hold(["one"])
    clock.now = 5
    held.release(["one"])
    clock.now = 6
    held.admit("three", model(Network(10)))
    assert present(held) == ["one", "three"]


def test_the_newcomer_stays_even_if_it_alone_exceeds_the_budget():
    held = residency(MemoryPolicy(budget=5), clock := Clock())
    admit_all(held, clock)
    assert present(held) == ["three"]


def test_what_is_held_leaves_only_after_its_last_release():
    held = residency(MemoryPolicy(budget=5), clock := Clock())
    held.hold(["one", "two"])
    held.hold(["one"])
    admit_all(held, clock)
    held.release(["one", "two"], unload=False)
    assert present(held) == list(NAMES)
    held.release([])
    assert present(held) == ["one"]
    held.release(["one"])
    assert present(held) == []


def test_what_is_kept_never_leaves():
    held = residency(MemoryPolicy(budget=5, idle_s=1), clock := Clock(), keep={"two"})
    admit_all(held, clock)
    clock.now = 100
    assert held.unload_idle() == ["three"]
    assert present(held) == ["two"]


def test_idle_models_leave_just_at_their_time():
    held = residency(MemoryPolicy(idle_s=10), clock := Clock())
    admit_all(held, clock)
    held.hold(["one"])
    clock.now = 10.5
    assert held.unload_idle() == []
    clock.now = 11
    assert held.unload_idle() == ["two"]
    held.release(["one"])
    clock.now = 20
    assert held.unload_idle() == ["three"]
    clock.now = 21
    assert held.unload_idle() == ["one"]
    assert held.unload_idle() == []


def test_a_dropped_model_is_absent_and_an_offloaded_one_comes_back_itself():
    for offload in (False, True):
        held = residency(MemoryPolicy(idle_s=1, offload=offload), clock := Clock(), device=CUDA)
        one = model(Network(10))
        held.admit("one", one)
        clock.now = 1
        assert held.unload_idle() == ["one"]
        assert held.present("one") is None
        assert one.networks[0].at == ("cpu" if offload else "cuda")
        assert held.bring_back("one") is (one if offload else None)
        assert one.networks[0].at == "cuda"
        # Coming back counts as use.
        clock.now = 1.5
        assert held.unload_idle() == []


def test_a_network_that_a_present_model_shares_does_not_move():
    held = residency(MemoryPolicy(budget=21, offload=True), clock := Clock(), device=CUDA, names=NAMES[:2])
    shared = Network(1)
    one, two = model(Network(20), shared), model(Network(20), shared)
    held.admit("one", one)
    clock.now = 1
    held.admit("two", two)
    assert present(held, NAMES[:2]) == ["two"]
    assert [network.at for network in (*one.networks, *two.networks)] == ["cpu", "cuda", "cuda", "cuda"]
    clock.now = 2
    assert held.bring_back("one") is one
    assert present(held, NAMES[:2]) == ["one"]
    assert [network.at for network in (*one.networks, *two.networks)] == ["cuda", "cuda", "cpu", "cuda"]


def test_shared_networks_count_once():
    shared = Network(10)
    for budget, expected in ((30, ["one", "two"]), (29, ["two"])):
        held = residency(MemoryPolicy(budget=budget), clock := Clock(), names=NAMES[:2])
        for clock.now, name in enumerate(NAMES[:2]):
            held.admit(name, model(Network(10), shared))
        assert present(held, NAMES[:2]) == expected


def test_what_computes_on_the_cpu_is_dropped_even_where_others_are_offloaded():
    held = residency(MemoryPolicy(idle_s=1, offload=True), clock := Clock())
    held.admit("one", model(Network(10)))
    clock.now = 1
    assert held.unload_idle() == ["one"]
    assert held.bring_back("one") is None


def test_the_bytes_of_models_are_those_of_their_weights_and_buffers():
    linear, norm = torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(4)
    # 4 bytes a float: 6 + 2 weights; 4 + 4 weights and 4 + 4 statistics; the count of batches is an int64.
    expected = 4 * 8, 4 * 16 + 8
    assert weight_bytes([model(linear)]) == expected[0]
    assert weight_bytes([model(linear, norm), model(norm), model(norm.half())]) == expected[0] + 2 * 16 + 8


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_the_budget_holds_and_what_is_held_or_kept_stays(seed, monkeypatch):
    """Restated: whenever the budget is looked at, either the rest fits it or nothing else could have left."""
    monkeypatch.setattr("pipelines.residency.gc.collect", lambda: None)
    rng = random.Random(seed)
    names = [f"m{i}" for i in range(6)]
    keep = set(rng.sample(names, 2))
    networks = {name: Network(rng.randint(1, 20)) for name in names}
    policy = MemoryPolicy(budget=rng.randint(10, 60), idle_s=rng.randint(3, 30), offload=rng.random() < 0.5)
    held = residency(policy, clock := Clock(), device=CUDA, keep=keep, names=names)
    holders = dict.fromkeys(names, 0)
    for _ in range(300):
        clock.now += rng.random()
        name, before, looked_at, needed = rng.choice(names), set(present(held, names)), False, set()
        act = rng.choice(["get", "hold", "release", "idle"])
        if act == "get" and name not in before:
            if held.bring_back(name) is None:
                held.admit(name, model(networks[name]))
            looked_at, needed = True, {name}
            assert held.present(name)
        elif act == "hold":
            held.hold([name])
            holders[name] += 1
        elif act == "release" and holders[name]:
            held.release([name])
            holders[name] -= 1
            looked_at = True
        elif act == "idle":
            held.unload_idle()
        there = set(present(held, names))
        bound = {n for n in names if holders[n]} | keep
        assert before & bound <= there
        assert there <= before | needed
        if looked_at:
            assert sum(networks[n].size for n in there) <= policy.budget or there <= bound | needed
        assert {networks[n].at for n in there} <= {"cuda"}


def test_a_model_that_is_being_offloaded_comes_back_to_whoever_needs_it():
    """The one who asks waits for the move to end, then moves it back."""
    moving, go_on = threading.Event(), threading.Event()

    class Slow(Network):
        def to(self, device):
            if torch.device(device).type == "cpu":
                moving.set()
                go_on.wait(30)
            super().to(device)

    held = residency(MemoryPolicy(idle_s=1, offload=True), clock := Clock(), device=CUDA)
    one = model(Slow(10))
    held.admit("one", one)
    clock.now = 1
    unloading = threading.Thread(target=held.unload_idle)
    unloading.start()
    assert moving.wait(30)
    assert held.present("one") is None
    back = []
    asking = threading.Thread(target=lambda: back.append(held.bring_back("one")))
    asking.start()
    go_on.set()
    unloading.join()
    asking.join()
    assert back == [one]
    assert one.networks[0].at == "cuda"
