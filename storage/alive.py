"""Who holds something, and whether it still lives: the process itself where it can be seen, else its beat.

A holder (of a lease, of a run) writes down who it is and where it beats: `beats/<token>`, one
object a process and store, written again every `BEAT_S` seconds while the process holds anything.

On the same boot of the same machine the answer is exact: the process is there or it is gone, and
a slow or stopped one is there. Elsewhere only the beat tells, and no two clocks are compared: a
waiter counts its own seconds since it last saw a new beat, or compares times that the store gave.
"""

import os
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillroom.remote import ask
from stillroom.stores import Store

__all__ = ["BEAT_S", "Watch", "hold", "holder_words", "is_gone", "is_here", "last_beat", "let_go", "remove", "store_clock", "this_process"]

BEAT_S = 5.0


def this_process() -> dict[str, Any]:
    """Host, boot, pid and start of this process; `boot` is empty where the system doesn't tell."""
    return {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_gone(who: dict[str, Any]) -> bool:
    """Whether that process surely ended: it ran on this boot of this machine, and isn't there any more."""
    return is_here(who) and _started(int(who["pid"])) != who["started"]


def is_here(who: dict[str, Any]) -> bool:
    """Whether a process can be looked up on this machine."""
    return bool(who.get("boot")) and who["boot"] == _boot()


def holder_words(who: dict[str, Any]) -> str:
    """A holder in a few words for people."""
    return f"process {who.get('pid', '?')} on {who.get('host', 'an unknown machine')}"


def hold(store: Store) -> str:
    """Begin to beat for one more thing that this process holds in a store; returns the beat's key."""
    with _lock:
        heart = _hearts.get(store.uri)
        if heart is None or heart.pid != os.getpid():
            heart = _hearts[store.uri] = _Heart(store)
        heart.holds += 1
        return heart.key


def let_go(store: Store) -> None:
    """End to beat for one thing; with the last one, the beat's object goes too."""
    with _lock:
        heart = _hearts.get(store.uri)
        if heart is None or heart.pid != os.getpid():
            return
        heart.holds -= 1
        if heart.holds:
            return
        del _hearts[store.uri]
    heart.stop()


def last_beat(store: Store, beat: str) -> datetime | None:
    """When a beat was last written, by the store's clock; None where there is none."""
    try:
        found: datetime = ask(store.uri, lambda: store.objects.head(beat))["last_modified"]
    except FileNotFoundError:
        return None
    return found.astimezone(UTC)


def store_clock(store: Store) -> datetime:
    """What time it is for the store: the only clock with which times of its objects may be compared."""
    probe = f"beats/now-{secrets.token_hex(8)}"
    try:
        store.put(probe, b"now")
        return last_beat(store, probe) or datetime.now(UTC)
    except Exception:
        return datetime.now(UTC)  # a store that we may only read
    finally:
        remove(store, probe)


def remove(store: Store, key: str) -> None:
    """Delete one object if it is there and the store can be reached."""
    with suppress(Exception):
        store.remove(key)


class Watch:
    """For how long, by its own clock, a waiter has seen no new beat of one holder."""

    def __init__(self, beat: str, clock: Callable[[], float]) -> None:
        self.beat, self._clock = beat, clock
        self._seen: bytes | None = None
        self._since = clock()

    def silent_for(self, store: Store) -> float:
        """Look again; seconds since the beat was last seen to move."""
        seen = store.read(self.beat) if self.beat else None
        if seen != self._seen:
            self._seen, self._since = seen, self._clock()
        return self._clock() - self._since


class _Heart:
    """The thread that beats for this process in one store."""

    def __init__(self, store: Store) -> None:
        self.store, self.key, self.pid, self.holds = store, f"beats/{secrets.token_hex(8)}", os.getpid(), 0
        self._stopped = threading.Event()
        store.put(self.key, b"0")
        self._thread = threading.Thread(target=self._beat, name="stillroom-beat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        remove(self.store, self.key)

    def _beat(self) -> None:
        count = 0
        while not self._stopped.wait(BEAT_S):
            count += 1
            with suppress(Exception):  # the next beat tries again
                self.store.put(self.key, str(count).encode())


_lock = threading.Lock()
_hearts: dict[str, _Heart] = {}


def _boot() -> str:
    """The boot that this process belongs to, and its namespace of process numbers: in another container, the same number is another process."""
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    return ""


def _started(pid: int) -> int | None:
    """When a process started, in ticks since the boot; None if there is none, or only its remains that nobody waited for."""
    try:
        # The name in brackets may hold anything, so fields count from its end: state is the first, the start the twentieth.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
