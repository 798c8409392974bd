"""Leases: one holder at a time while all live, a dead one taken over, and nothing left behind."""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stillroom.stores import Store
from storage import alive
from storage.alive import is_gone, is_here, this_process
from storage.leases import Halted, Lease, Waiter, lease, wait_until_free

KEY = "f" * 64


def elsewhere(number: int) -> dict:
    """A process of another machine: nobody here can look it up."""
    return {"host": f"node-{number}", "boot": "another boot", "pid": 1, "started": 1}


# What is promised, for any order of events


class Builders(RuleBasedStateMachine):
    """Builders on machines of their own: they try, beat, finish and are killed, with one clock that the test moves.

    Everybody who lives beats whenever the clock moves, as the heart's thread does.
    """

    PATIENCE = 60.0

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store, self.now, self.beats, self.born = Store(self.folder.name), 0.0, 0, 0
        self.waiting: dict[int, Waiter] = {}
        self.holding: dict[int, Lease] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule()
    def another_comes(self) -> None:
        self.born += 1
        self.store.put(f"beats/{self.born}", b"first")
        self.waiting[self.born] = Waiter(self.store, KEY, elsewhere(self.born), f"beats/{self.born}", patience_s=self.PATIENCE, clock=lambda: self.now)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def one_tries(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.waiting)))
        was_free = not self.store.list("leases/")
        taken = self.waiting[number].step()
        assert taken or not was_free
        if taken:
            self.holding[number] = taken
            del self.waiting[number]

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.beats += 1
        for number in [*self.waiting, *self.holding]:
            self.store.put(f"beats/{number}", str(self.beats).encode())

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def the_holder_finishes(self, data: st.DataObject) -> None:
        self.holding.pop(data.draw(st.sampled_from(sorted(self.holding)))).let_go()
        assert self.store.list("leases/") == []

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def the_holder_is_killed_and_the_first_that_waits_long_enough_takes_over(self, data: st.DataObject) -> None:
        self.holding.pop(data.draw(st.sampled_from(sorted(self.holding))))
        self.another_comes()
        heir = self.waiting.pop(self.born)
        while (taken := heir.step()) is None:
            self.now += 20
        self.holding[self.born] = taken

    @invariant()
    def one_holds_at_most(self) -> None:
        assert len(self.holding) <= 1
        assert all(held.is_held() for held in self.holding.values())


TestBuilders = Builders.TestCase


def test_threads_of_one_process_take_turns(store):
    inside, most, turns = 0, 0, []

    def work(number: int) -> None:
        nonlocal inside, most
        with lease(Store(store), KEY) as held:
            assert held is not None
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            inside -= 1
            turns.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, sorted(turns)) == (1, list(range(6)))
    assert Store(store).list("") == []  # neither leases nor beats are left


# Slow, silent, dead


def test_a_silent_holder_is_taken_over_by_the_waiters_own_clock(store):
    made, now = Store(store), [0.0]
    assert Waiter(made, KEY, elsewhere(1), "beats/1").step()
    waiter = Waiter(made, KEY, elsewhere(2), "beats/2", patience_s=60, clock=lambda: now[0])
    assert waiter.step() is None
    assert waiter.holder == "process 1 on node-1"
    now[0] = 59.0
    assert waiter.step() is None
    made.put("beats/1", b"slow, but there")
    now[0] = 61.0
    assert waiter.step() is None
    now[0] = 122.0
    taken = waiter.step()
    assert taken is not None
    assert taken.generation == 2


def test_one_that_was_taken_over_and_wakes_up_harms_nobody(store):
    made = Store(store)
    slow = Waiter(made, KEY, elsewhere(1), "beats/1").step()
    second = Waiter(made, KEY, elsewhere(2), "beats/2", patience_s=-1).step()
    assert slow is not None and second is not None
    assert (slow.is_held(), second.is_held()) == (False, True)
    slow.let_go()
    assert second.is_held()
    second.let_go()
    third = Waiter(made, KEY, elsewhere(3), "beats/3").step()
    assert third is not None
    assert third.generation == slow.generation  # the numbers begin again, the tokens don't
    slow.let_go()
    assert third.is_held()


def test_one_whose_answer_was_lost_is_found_to_be_held(store, monkeypatch):
    made = Store(store)
    waiter = Waiter(made, KEY, elsewhere(1), "beats/1")
    create = made.create_json
    monkeypatch.setattr(made, "create_json", lambda key, value: create(key, value) and False)
    assert waiter.step() is None
    taken = waiter.step()
    assert taken is not None
    assert (taken.generation, taken.is_held()) == (1, True)


def test_a_damaged_lease_is_one_that_nobody_holds(store):
    made = Store(store)
    made.put(f"leases/{KEY}.1.json", b'{"holder": ')
    assert Waiter(made, KEY, elsewhere(1), "beats/1").step() is None
    taken = Waiter(made, KEY, elsewhere(1), "beats/1", patience_s=-1).step()
    assert taken is not None
    assert taken.generation == 2


HOLD = """
import sys, time
from stillroom.stores import Store
from storage.leases import lease
with lease(Store(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(store):
    """Another process that holds the lease."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(store), KEY], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_a_killed_holder_of_this_machine_is_taken_over_at_once(store, holder):
    made, told = Store(store), []
    killer = threading.Timer(0.5, holder.kill)
    killer.start()
    with lease(made, KEY, waiting=told.append, patience_s=1e9) as held:
        assert held is not None
        assert held.generation == 2
    assert told == [f"process {holder.pid} on {this_process()['host']}"]
    assert made.list("") == []


def test_a_wait_ends_when_the_work_is_done_or_the_build_stops(store, holder):
    with lease(Store(store), KEY, done=lambda: True) as held:
        assert held is None
    with pytest.raises(Halted), lease(Store(store), KEY, halted=lambda: True):
        pass
    assert holder.poll() is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_who_may_be_harmed_waits_for_a_holder_that_lives_however_silent(store, holder):
    told: list[str] = []
    waiter = threading.Thread(target=wait_until_free, args=(Store(store), KEY), kwargs={"waiting": told.append, "patience_s": 0.0})
    waiter.start()
    waiter.join(0.8)
    assert waiter.is_alive()
    assert len(told) == 1
    holder.kill()
    waiter.join(5)
    assert not waiter.is_alive()


def test_who_is_silent_elsewhere_loses_the_lease_to_who_may_be_harmed(store):
    made = Store(store)
    silent = Waiter(made, KEY, elsewhere(1), "beats/1").step()
    assert silent is not None
    wait_until_free(made, KEY, patience_s=0.1)
    assert not silent.is_held()
    assert made.list("") == []


# Processes


def test_this_process_is_here_and_not_gone():
    assert not is_gone(this_process())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_a_number_given_again_a_zombie_and_another_container_are_told_apart():
    me = this_process()
    assert is_here(me)
    assert is_gone(me | {"started": me["started"] - 1})
    assert not is_gone(me | {"boot": f"{me['boot'].rpartition('/')[0]}/pid:[1]", "pid": 2**22 + 1})
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    its = {**me, "pid": child.pid, "started": alive._started(child.pid)}
    assert not is_gone(its)
    child.kill()
    deadline = time.monotonic() + 10
    while not is_gone(its):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert Path(f"/proc/{child.pid}").exists()  # it ended, and nobody has waited for it
    child.wait()


def test_a_process_beats_while_it_holds_anything(store, monkeypatch):
    monkeypatch.setattr(alive, "BEAT_S", 0.05)
    made = Store(store)
    with lease(made, "one"), lease(made, "two"):
        (beat,) = made.list("beats/")
        first, deadline = made.read(beat), time.monotonic() + 10
        while made.read(beat) == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert made.list("") == []
