"""Leases: of several processes that could do the same work, one does it while the others wait.

    leases/<key>.<generation>.json    who holds it, where that process beats, and what for

All that a lease needs of a store is a put that only succeeds where nothing is. The highest
generation counts. Whoever finds it held by a dead process takes over by creating the next one:
at once where the process can be looked up and is gone, else after `PATIENCE_S` without a new beat.
A lease that was let go leaves nothing.

A lease saves work; it protects nothing. Its holder may be stopped for an hour and then go on
beside the one that took over, so what a lease is for must come out right with two holders too: a
stage's record is one conditional put, and so is a snapshot's number.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stillroom.errors import StoreError
from stillroom.stores import Store
from storage.alive import Watch, hold, holder_words, is_gone, is_here, let_go, remove, this_process

__all__ = ["PATIENCE_S", "Halted", "Lease", "Waiter", "Waiting", "lease", "wait_until_free"]

# Twelve beats: a machine that swaps, or a store that answers late, isn't taken for dead.
PATIENCE_S = 60.0
POLL_S, POLL_REMOTE_S = 0.25, 2.0

# Told who is waited for.
Waiting = Callable[[str], None]


class Halted(Exception):
    """A wait for a lease was halted."""


@dataclass(frozen=True)
class Lease:
    """A lease that somebody holds: its key, its generation, and the token that tells it from a later one of the same number."""

    store: Store
    key: str
    generation: int
    token: str

    def is_held(self) -> bool:
        """Whether it still counts: nobody took over."""
        generation, found = _highest(self.store, self.key)
        return generation == self.generation and found is not None and found.get("token") == self.token

    def take_away(self) -> None:
        """Create it and give it up at once: whoever held the one before, and wakes up, finds that it doesn't any more."""
        written = {"holder": this_process(), "beat": "", "what": "taken away", "token": self.token}
        if self.store.create_json(_at(self.key, self.generation), written):
            self.let_go()

    def let_go(self) -> None:
        """Give it up, and clear away those before it; one that somebody took over meanwhile stays as it is."""
        for generation in _generations(self.store, self.key):
            if generation < self.generation or (generation == self.generation and self.is_held()):
                remove(self.store, _at(self.key, generation))


class Waiter:
    """Tries to get a lease, one step at a time.

    Args:
        store, key: which.
        who: this process, as `this_process` tells it.
        beat: the key where it beats.
        what: what for, in a few words.
        patience_s: how long a holder that can't be looked up may be silent.
        clock: seconds that never go back.
    """

    def __init__(
        self, store: Store, key: str, who: dict[str, Any], beat: str, what: str = "", *,
        patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.store, self.key, self._patience_s, self._clock = store, key, patience_s, clock
        self._token = secrets.token_hex(8)
        self._written = {"holder": who, "beat": beat, "what": what, "token": self._token}
        self._watch: Watch | None = None
        self._watched = ""
        self.holder = ""

    def step(self) -> Lease | None:
        """The lease, if it was free or its holder is dead; else None, and `holder` says who has it."""
        generation, found = _highest(self.store, self.key)
        if found is not None and found.get("token") == self._token:
            return Lease(self.store, self.key, generation, self._token)  # it was written, and the answer lost
        if found is not None and not self._is_dead(found):
            self.holder = holder_words(found.get("holder", {}))
            return None
        if not self.store.create_json(_at(self.key, generation + 1), self._written):
            return None
        taken = Lease(self.store, self.key, generation + 1, self._token)
        if found is not None:
            remove(self.store, str(found.get("beat", "")))
        return taken

    def _is_dead(self, found: dict[str, Any]) -> bool:
        if is_gone(found.get("holder", {})):
            return True
        if self._watch is None or self._watched != found.get("token", "?"):
            self._watch, self._watched = Watch(str(found.get("beat", "")), self._clock), found.get("token", "?")
        return self._watch.silent_for(self.store) > self._patience_s


@contextmanager
def lease(
    store: Store, key: str, what: str = "", *, done: Callable[[], bool] = lambda: False, waiting: Waiting = lambda holder: None,
    halted: Callable[[], bool] = lambda: False, patience_s: float = PATIENCE_S,
) -> Iterator[Lease | None]:  # fmt: skip
    """Hold a lease for the time of a `with` block, once whoever has it lets go or dies.

    Args:
        store, key: which.
        what: what for, in a few words.
        done: asked while waiting; True ends the wait without the lease, and None comes in its place.
        waiting: told once who is waited for.
        halted: asked while waiting; True ends the wait with an error.
        patience_s: how long a holder that can't be looked up may be silent.

    Raises:
        Halted: the wait was halted.
    """
    beat = hold(store)
    try:
        taken = _wait(Waiter(store, key, this_process(), beat, what, patience_s=patience_s), done, waiting, halted)
        try:
            yield taken
        finally:
            if taken is not None:
                taken.let_go()
    finally:
        let_go(store)


def wait_until_free(store: Store, key: str, *, waiting: Waiting = lambda holder: None, patience_s: float = PATIENCE_S) -> None:
    """Wait until nobody alive holds a lease, without keeping it.

    A holder on this machine is waited for as long as it lives, however silent it is: who asks here
    would be harmed by what the holder does. One that is dead or silent elsewhere loses the lease, so
    that it finds out if it wakes up.
    """
    watch, watched, told = None, "", False
    while True:
        generation, found = _highest(store, key)
        if found is None:
            return
        holder = found.get("holder", {})
        if watch is None or watched != found.get("token", "?"):
            watch, watched = Watch(str(found.get("beat", "")), time.monotonic), found.get("token", "?")
        if is_gone(holder) or (not is_here(holder) and watch.silent_for(store) > patience_s):
            Lease(store, key, generation + 1, secrets.token_hex(8)).take_away()
            continue
        if not told:
            waiting(holder_words(holder))
            told = True
        time.sleep(_poll_s(store))


def _wait(waiter: Waiter, done: Callable[[], bool], waiting: Waiting, halted: Callable[[], bool]) -> Lease | None:
    told = False
    while (taken := waiter.step()) is None:
        if done():
            return None
        if halted():
            raise Halted(waiter.key)
        if waiter.holder and not told:
            waiting(waiter.holder)
            told = True
        time.sleep(_poll_s(waiter.store))
    return taken


def _poll_s(store: Store) -> float:
    return POLL_S if store.local else POLL_REMOTE_S


def _at(key: str, generation: int) -> str:
    return f"leases/{key}.{generation}.json"


def _generations(store: Store, key: str) -> list[int]:
    # All in one folder: it holds no more than what is being worked on, and leaves no empty folders behind.
    form = re.compile(rf"leases/{re.escape(key)}\.(\d+)\.json")
    return sorted(int(found[1]) for name in store.list("leases/") if (found := form.fullmatch(name)))


def _highest(store: Store, key: str) -> tuple[int, dict[str, Any] | None]:
    """The generation that counts and what it says; (0, None) where nobody holds the lease."""
    while generations := _generations(store, key):
        try:
            found = store.read_json(_at(key, generations[-1]))
        except StoreError:
            found = {}  # damaged: it names nobody, and is silent
        if found is not None:
            return generations[-1], found
        # Let go between the two looks.
    return 0, None
