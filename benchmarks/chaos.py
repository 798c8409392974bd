"""Kill real builds at random moments and at every boundary, build on, and compare with a build that nobody killed.

python benchmarks/chaos.py                              200 kills of a recipe with every shape of work, in a folder
python benchmarks/chaos.py --kills 8 --small            a recipe that trains nothing
python benchmarks/chaos.py --store s3                   a SeaweedFS server on loopback, started for it
python benchmarks/chaos.py --store s3://bucket/prefix   an object store; endpoint and credentials from AWS_* variables

A build is `stillroom build` in a process group of its own. Half of the kills hit a boundary (before
and after each write, note, commit, tag, record, manifest, checkpoint …; `crash/site` puts them there,
nothing of stillroom knows), half come by the clock. SIGKILL hits the build, whose workers have to
notice, or its whole process group at once, as when a machine dies. A store is killed at several times,
then the last build runs through. Exit status 1 if anything was wrong.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

# A script's own folder comes first on the path, and there `storage.py` would hide the room of that name.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent)]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

from benchmarks.crash.builds import Event, Target, copy_store, run_build, write_recipes
from benchmarks.crash.checks import facts, look
from benchmarks.crash.rounds import Clock, Round, choose, play
from stillroom.stores import Store

ALLOWED_S = 600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--store", default="", help="where the stores go: a folder, s3://bucket/prefix, or s3; default: a temporary folder")
    parser.add_argument("--small", action="store_true", help="a recipe without training")
    parser.add_argument("--workers", type=int, default=2, help="processes of each build")
    parser.add_argument("--chain", type=int, default=10, help="kills in one store before a build runs through")
    parser.add_argument("--only", default="", metavar="KINDS", help="only boundaries of these kinds, such as record,manifest")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of moments")
    parser.add_argument("--json", action="store_true", help="print all that was seen as JSON")
    parser.add_argument("--keep", action="store_true", help="leave the stores and logs where they are")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: builds and servers end with us, and what was seen is told
    with _folder(args) as folder, _bucket(args, folder), _server(folder):
        chaos = Chaos(folder, args)
        chaos.prepare()
        try:
            chaos.kill()
        except KeyboardInterrupt:
            _say("stopped; this was seen until now:")
    rounds = chaos.rounds
    wrong = [problem for round in rounds for problem in [*round.wrong, *(problem for kill in round.kills for problem in kill.wrong)]]
    print(json.dumps([asdict(round) for round in rounds], indent=1, default=str) if args.json else "\n".join(report(rounds, chaos)))
    return 1 if wrong or not all(round.ended for round in rounds) else 0


class Chaos:
    """A store with a snapshot, an uninterrupted build of the next, and the rounds of those that are killed."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder, self.args, self.rng = folder, args, random.Random(args.seed)
        self.before, self.recipe = write_recipes(folder, whole=not args.small)
        self.log: list[Event] = []
        self.expected: dict[str, Any] = {}
        self.rounds: list[Round] = []

    def store(self, name: str) -> Store:
        """A store by its name; the log's labels begin after `store/`."""
        return Store(f"{self.args.store.rstrip('/') if '://' in self.args.store else self.folder}/{name}/store")

    def prepare(self) -> None:
        """Build what is there before, and the uninterrupted build."""
        _say("building what is there before, and the build that nobody kills …")
        base, whole = self.store("base"), self.store("uninterrupted")
        for recipe, store in ((self.before, base), (self.recipe, whole)):
            if store is whole:
                copy_store(base, whole)
            log = self.folder / f"{recipe.stem}.log"
            build = run_build(recipe, store, log, workers=self.args.workers, timeout_s=ALLOWED_S)
            if build.status:
                raise SystemExit(f"the build failed without being killed:\n{build.output}")
            self.log = build.events
        if wrong := look(whole):
            raise SystemExit("the store is wrong without any kill:\n" + "\n".join(wrong))
        self.expected = facts(whole)
        _say(f"{len(self.log)} moments in {self.log[-1].time - self.log[0].time:.1f} s")

    def kill(self) -> None:
        """Play rounds until there were as many kills as asked for."""
        wanted: int = self.args.kills
        only = self.args.only.split(",") if self.args.only else []
        log = [event for event in self.log if not only or event.kind in only]
        queue, keep, rounds = choose(log, wanted, self.rng), self.args.keep, self.rounds
        if not queue:
            raise SystemExit(f"no moment of these kinds: {self.args.only}; there are {', '.join(sorted({event.kind for event in self.log}))}")
        while (so_far := sum(len(round.kills) for round in rounds)) < wanted:
            number, store = len(rounds), self.store(f"round-{len(rounds)}")
            queue += choose(log, wanted, self.rng) if len(queue) < self.args.chain else []
            at = self._next(queue, number, min(self.args.chain, wanted - so_far))
            copy_store(self.store("base"), store)
            rounds.append(round := Round(number))
            play(round, self.recipe, store, self.folder, at, self.expected, workers=self.args.workers, timeout_s=ALLOWED_S, say=_say)
            # What no build came to, because others had done it, is tried again in another store.
            queue += [target._replace(nth=0) for target in round.unspent if isinstance(target, Target)]
            for problem in round.wrong:
                _say(f"round {number}: {problem}")
            if round.wrong or any(kill.wrong for kill in round.kills):
                self.args.keep = True  # for whoever looks into it
            elif not keep:
                store.delete("")

    def _next(self, queue: list[Target], number: int, count: int) -> Sequence[Target | Clock]:
        """The kills of a round: boundaries, and in every other round by the clock."""
        if self.args.only or number % 2 == 0:
            return [queue.pop(0) for _ in range(min(len(queue), count))]
        return [self._clock(count) for _ in range(count)]

    def _clock(self, count: int) -> Clock:
        """A moment by the clock, such that so many of them get through a build."""
        lasts_s = self.log[-1].time - self.log[0].time
        after = self.rng.choices(("start", "run log", "job"), (1, 2, 7))[0]
        most_s = lasts_s * {"start": 0.3, "run log": 0.5, "job": 1.5 / count}[after]
        return Clock(after, self.rng.uniform(0, most_s), self.rng.choice(("build", "machine")))


def report(rounds: Sequence[Round], chaos: Chaos) -> Iterator[str]:
    """The table, a line a kind of moment, and what it comes to.

    `kept` is how many partitions of unfinished stages waited for the next build at most, `done again` how many were lost at most.
    """
    kills = [kill for round in rounds for kill in round.kills]
    if not kills:
        yield "no kill yet"
        return
    ends = {round.number for round in rounds if round.ended}
    ends_wrong = {round.number for round in rounds if round.wrong}
    yield f"{'killed':<44}{'build':>7}{'machine':>9}{'kept':>6}{'done again':>12}  {'store afterwards':<18}end"
    for point in sorted({kill.point for kill in kills}, key=lambda point: (point.startswith("by the clock"), point.split()[1:], point)):
        of_point = [kill for kill in kills if kill.point == point]
        who = [sum(kill.who == who for kill in of_point) for who in ("build", "machine")]
        bad, played = sum(bool(kill.wrong) for kill in of_point), {kill.round for kill in of_point}
        end = f"{len(played & ends_wrong)} differ" if played & ends_wrong else "equal" if played <= ends else "not reached"
        kept, again = max(kill.kept for kill in of_point), max(kill.lost for kill in of_point)
        yield f"{point:<44}{who[0]:>7}{who[1]:>9}{kept:>6}{again:>12}  {f'{bad} wrong' if bad else 'well':<18}{end}"
    yield ""
    resumed = sorted(seconds for round in rounds for seconds in round.resumed_s) or [0.0]
    left: dict[str, int] = {}
    for round in rounds:
        left |= {what: left.get(what, 0) + count for what, count in round.left_over.items()}
    most = max(kill.lost for kill in kills)
    yield f"{len(kills)} kills in {len(rounds)} stores, of {len(chaos.log)} moments of a build; at most {most} partitions done again after one"
    yield f"a killed build's other processes ended within {max(kill.outlived_s for kill in kills):.1f} s"
    yield f"the next build was at work after {resumed[len(resumed) // 2]:.1f} s, at most {resumed[-1]:.1f} s"
    of_ahead = sorted({kill.point for kill in kills if kill.ahead})
    yield f"a published table's newest version was whole and not published yet after kills at: {', '.join(of_ahead) or 'none'}"
    yield f"left for gc: {', '.join(f'{count} {what}' for what, count in left.items())}"
    problems = [f"round {kill.round}, {kill.point} ({kill.where}): {problem}" for kill in kills for problem in kill.wrong]
    problems += [f"round {round.number}, end: {problem}" for round in rounds for problem in round.wrong]
    stopped = [round.number for round in rounds if not round.ended]
    yield f"{len(problems)} violations" + (f"; round {stopped[0]} was stopped before its end" if stopped else "")
    yield from problems


@contextmanager
def _folder(args: argparse.Namespace) -> Iterator[Path]:
    local = args.store and args.store != "s3" and "://" not in args.store
    folder = Path(tempfile.mkdtemp(prefix="stillroom-chaos-", dir=args.store if local else None))
    try:
        yield folder
    finally:
        if args.keep:
            _say(f"kept in {folder}")
        else:
            shutil.rmtree(folder)


@contextmanager
def _bucket(args: argparse.Namespace, folder: Path) -> Iterator[None]:
    """For `--store s3`: the server of the tests, with what is needed to reach it in the environment."""
    if args.store != "s3":
        yield
        return
    spec = spec_from_file_location("weed", ROOT / "tests" / "storage" / "s3" / "weed.py")
    assert spec is not None and spec.loader is not None
    weed = module_from_spec(spec)
    spec.loader.exec_module(weed)
    with warnings.catch_warnings(action="ignore"):  # it forks, to end with us; Lance has done nothing yet that a fork could break
        server = weed.Weed(folder / "weed")
    os.environ.update(server.environment)
    args.store = f"s3://{weed.BUCKET}/chaos"
    try:
        yield
    finally:
        server.stop()


@contextmanager
def _server(folder: Path) -> Iterator[None]:
    """One Prefect server for all builds: that of STILLROOM_HOME if it is set, else one of our own."""
    own = "STILLROOM_HOME" not in os.environ
    if own:
        os.environ["STILLROOM_HOME"] = str(folder / "home")
    from flows.server import ensure_server, stop_server

    begun = time.monotonic()
    ensure_server()
    _say(f"a Prefect server answers after {time.monotonic() - begun:.0f} s")
    try:
        yield
    finally:
        if own:
            stop_server()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
