"""A round: one store in which a build is killed again and again until nothing is left to kill it at, and what was seen."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.crash.builds import Build, Event, Target, run_build
from benchmarks.crash.checks import ahead, facts, finished, hangs_over, look
from stillroom.stores import Store
from storage.runs import list_runs

__all__ = ["Begun", "Clock", "Kill", "Round", "choose", "play"]

# Jobs whose results are noted one by one, so that a resumed build takes them over.
PARTITIONS = ("row_job", "source_job", "unit_job")


@dataclass(frozen=True)
class Clock:
    """A kill by the clock: so many seconds after the process started, the run was logged, or the first job began."""

    after: str
    seconds: float
    who: str


@dataclass
class Kill:
    """One kill: where, how many partitions had to be done again, how many were kept, and all that was wrong afterwards.

    `ahead` names tables whose newest version is not published.
    """

    round: int
    point: str
    where: str
    who: str
    lost: int = 0
    kept: int = 0
    outlived_s: float = 0.0
    ahead: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Round:
    """What a round came to; `wrong` are the differences between its end, if it `ended`, and an uninterrupted build."""

    number: int
    ended: bool = False
    kills: list[Kill] = field(default_factory=list)
    unspent: list[Target | Clock] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left_over: dict[str, int] = field(default_factory=dict)
    resumed_s: list[float] = field(default_factory=list)


def choose(log: Sequence[Event], count: int, rng: random.Random) -> list[Target]:
    """So many moments of an uninterrupted build, evenly over kinds and moments, each kind's chosen at random.

    Heartbeats are left out: they come when the clock says so, and are for kills by the clock.
    """
    seen: Counter[tuple[str, str, str]] = Counter()
    moments: dict[tuple[str, str], list[Target]] = {}
    for event in log:
        name = (event.kind, event.moment, event.label)
        if event.kind != "beat" and event.moment != "read":
            moments.setdefault(name[:2], []).append(Target(*name, seen[name], rng.choice(("build", "machine"))))
        seen[name] += 1
    for found in moments.values():
        rng.shuffle(found)
    kinds = list(moments.values())
    rng.shuffle(kinds)
    chosen: list[Target] = []
    while len(chosen) < count and any(kinds):
        chosen += [found.pop() for found in kinds if found]
    return chosen[:count]


def play(
    this: Round, recipe: Path, store: Store, logs: Path, kills: Iterable[Target | Clock], expected: dict[str, object],
    *, workers: int, timeout_s: float, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Kill builds of a store until none of these moments comes any more, look at it each time, and compare its end with `expected`."""
    pending, begun = list(kills), Begun(store, workers)
    while True:
        log = logs / f"round-{this.number}-{len(this.kills)}.log"
        begun.before_build()
        build = _run(recipe, store, log, pending, workers, timeout_s)
        this.wrong += begun.done_again(build.events)
        this.resumed_s += _until_first_job(build.events) if this.kills else []
        at = build.target or next((kill for kill in pending if isinstance(kill, Clock)), None)
        if not build.killed or at is None:
            break
        pending.remove(at)
        this.kills.append(_looked_at(this.number, build, at, begun, store))
        say(_line(this.kills[-1]))
    this.unspent = pending
    if build.status:
        this.wrong.append(f"the build failed with status {build.status}: {build.output[-500:]}")
    this.wrong += differences(expected, facts(store)) + _runs_told_right(store, len(this.kills))
    again = _run(recipe, store, logs / f"round-{this.number}-again.log", [], workers, timeout_s)
    if again.status or "everything was there already" not in again.output:
        this.wrong.append(f"one more build isn't a reuse of everything: {again.output[-300:]}")
    this.left_over, this.ended = hangs_over(store), True


def differences(expected: dict[str, object], found: dict[str, object]) -> list[str]:
    """Where two ends differ, by name."""
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is there, and not after an uninterrupted build" for name in found if name not in expected]
    return wrong + [f"{name} differs: {_first_difference(expected[name], found[name])}" for name in expected if name in found and expected[name] != found[name]]


class Begun:
    """Which partitions were begun and not noted, over the builds of a round."""

    def __init__(self, store: Store, workers: int) -> None:
        self.store, self.workers = store, workers
        self.noted: set[str] = set()
        self.done: set[str] = set()
        self.checkpoints: set[str] = set()

    def before_build(self) -> None:
        """What the next build finds."""
        work = self.store.list("work/")
        self.noted = {key for key in work if key.endswith(".json")}
        self.checkpoints = {key for key in work if "/checkpoints/" in key}
        self.done = finished(self.store)

    def done_again(self, log: Sequence[Event]) -> list[str]:
        """What a build did although it was done, or learned anew although a checkpoint was there."""
        jobs = [event for event in log if event.kind == "job" and event.moment == "before"]
        wrong = [
            f"a finished stage ran again: {event.label}" for event in jobs if event.label.split()[1] in self.done and event.label.split()[0] != "tally_job"
        ]
        wrong += [f"a finished partition ran again: {event.label}" for event in jobs if _note(event.label) in self.noted]
        read = {event.label for event in log if event.moment == "read"}
        ended = [event.label.split() for event in log if event.kind == "job" and event.moment == "after" and event.label.startswith("unit_job")]
        folders = tuple(f"work/{label[1]}/checkpoints/{label[3]}/" for label in ended)
        return wrong + [f"a checkpoint was not taken over: {key}" for key in self.checkpoints if key.startswith(folders) and key not in read]

    def kept(self) -> int:
        """How many partitions of unfinished stages wait for the next build."""
        done = finished(self.store)
        return len([key for key in self.store.list("work/") if key.endswith(".json") and key.split("/")[1] not in done])

    def lost(self, log: Sequence[Event]) -> list[str]:
        """Partitions that a killed build began and that nobody noted: they have to be done again."""
        work, done = set(self.store.list("work/")), finished(self.store)
        jobs = dict.fromkeys(event.label for event in log if event.kind == "job" and event.label.startswith(PARTITIONS))
        return [label for label in jobs if _note(label) not in work and label.split()[1] not in done]


def _note(job: str) -> str:
    """Where a partition's result is noted, by its job's label."""
    _, fingerprint, _, part, *again = [*job.split(), "", "", ""][:5]
    return f"work/{fingerprint}/{'/'.join(filter(None, [*again, part]))}.json"


def _run(recipe: Path, store: Store, log: Path, pending: Sequence[Target | Clock], workers: int, timeout_s: float) -> Build:
    """A build that dies by the clock, if that is what comes next, else at the first of all boundaries that it comes to."""
    if pending and isinstance(pending[0], Clock):
        return run_build(recipe, store, log, workers=workers, kill_after=_by_the_clock(pending[0], log), timeout_s=timeout_s)
    targets = [target for target in pending if isinstance(target, Target)]
    return run_build(recipe, store, log, workers=workers, targets=targets, timeout_s=timeout_s)


def _by_the_clock(clock: Clock, log: Path) -> Callable[[float], str | None]:
    begun: list[float] = []

    def whom(elapsed_s: float) -> str | None:
        if not begun and (clock.after == "start" or f"\t{clock.after}\t" in log.read_text()):
            begun.append(elapsed_s if clock.after != "start" else 0.0)
        return clock.who if begun and elapsed_s - begun[0] >= clock.seconds else None

    return whom


def _looked_at(number: int, build: Build, at: Target | Clock, begun: Begun, store: Store) -> Kill:
    # A heartbeat says nothing of where the build was.
    last = next((event for event in reversed(build.events) if event.kind != "beat"), Event(0, 0, "start", "", ""))
    point, where = (f"{at.moment} {at.kind}", at.label) if isinstance(at, Target) else (f"by the clock, after {last.kind}", last.label)
    lost = begun.lost(build.events)
    kill = Kill(number, point, where, at.who, len(lost), begun.kept(), build.outlived_s)
    kill.wrong, kill.ahead = look(store), ahead(store)
    if len(lost) > begun.workers:
        kill.wrong.append(f"{len(lost)} partitions have to be done again, by {begun.workers} workers: {', '.join(lost)}")
    if build.left:
        kill.wrong.append(f"{len(build.left)} processes lived on: {'; '.join(build.left)}")
    return kill


def _runs_told_right(store: Store, kills: int) -> list[str]:
    states = Counter(run["state"] for run in list_runs(store))
    wrong = [f"{count} runs are told as {state}" for state, count in states.items() if state not in ("Completed", "Crashed")]
    return wrong + ([f"{states['Crashed']} runs are told as crashed, of {kills} that were killed"] if states["Crashed"] > kills else [])


def _until_first_job(log: Sequence[Event]) -> list[float]:
    """Seconds from a build's entry in the log of runs to its first job: what a dead build may hold up."""
    logged, job = (next((event.time for event in log if event.kind == kind), None) for kind in ("run log", "job"))
    return [job - logged] if logged is not None and job is not None else []


def _first_difference(expected: object, found: object, at: str = "") -> str:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in [*expected, *found]:
            if key not in expected or key not in found or expected[key] != found[key]:
                return _first_difference(expected.get(key), found.get(key), f"{at}.{key}")
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            if one != other:
                return _first_difference(one, other, f"{at}[{index}]")
    if isinstance(expected, str) and isinstance(found, str):
        start = max(0, next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), 0) - 30)
        expected, found = expected[start : start + 80], found[start : start + 80]
    return f"{at} {expected!r} became {found!r}"[:400]


def _line(kill: Kill) -> str:
    return f"round {kill.round}: {kill.point} ({kill.where or 'nothing yet'}), {kill.who}: {'; '.join(kill.wrong) or 'well'}"
