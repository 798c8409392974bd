"""gc: snapshots that a policy drops, and whatever no kept snapshot, no build and no next build needs, go from the store.

A file stays if a record or a manifest that stays names it. Whether Lance knows the file doesn't count, so
what its own clean-up leaves goes too: files of builds that died, versions by other hands, old manifests.

    withdrawn/<name>/<N>.json    written first for each snapshot that goes: its manifest stays, and `open` says why it is refused

Then what names files goes before the files: records (each before those that it refers to), tags, versions, data.
A crash at any instant leaves a store that verifies and that the next gc finishes.

Builds: gc takes the lease `gc` and then looks at the log of runs; a build writes itself into the log and then waits
for that lease. So either gc sees the build, or the build waits. What a build that gc sees counts on stays. Of the
tables that it may write, what is younger than the build stays, and so do the first version and the newest, on which it commits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

from stillroom.disk import is_full
from stillroom.format import require_format
from stillroom.scratch import SCRATCH
from stillroom.stores import Store
from storage.alive import holder_words
from storage.inventory import whole_inventory
from storage.leases import lease
from storage.manifests import withdraw
from storage.needed import Policy, choose, logged_runs, needed
from storage.runs import live_runs
from storage.space import full_disk
from storage.sweep import FILES, LEFT_OVER, OBJECTS, Removal, Sweep, carry_out, removing

__all__ = ["Policy", "Removal", "Report", "gc"]


@dataclass(frozen=True)
class Report:
    """What gc did, or with `dry_run` would do.

    Args:
        kept, dropped: snapshots.
        removed: files and objects, in the order in which they go.
        bytes: what the store held before.
        note: why gc did nothing, if it did nothing for a reason.
    """

    kept: list[str]
    dropped: list[str]
    removed: list[Removal] = field(default_factory=list)
    bytes: int = 0
    note: str = ""
    dry_run: bool = False

    @property
    def bytes_removed(self) -> int:
        """The size of all that goes."""
        return sum(removal.bytes for removal in self.removed)


def gc(store: Store, policy: Policy | None = None, *, dry_run: bool = False, waiting: Callable[[str], None] = lambda holder: None) -> Report:
    """Remove what nobody needs.

    Args:
        store: where.
        policy: which snapshots stay; None keeps all.
        dry_run: only say what would go.
        waiting: told who is waited for, if another gc is at work.

    Raises:
        InputError: the policy names a snapshot that isn't there.
        StoreError: a record or manifest is damaged, so what is needed isn't known; or another process took over.
    """
    require_format(store)
    policy = policy or Policy()
    if dry_run or not store.exists():
        return _decide(store, policy, dry_run=dry_run).report
    try:
        return _swept(store, policy, waiting)
    except Exception as error:
        if not is_full(error):
            raise
    # Not even the lease could be written.
    before, freed = sum(store.sizes("").values()), _freed(store, policy)
    with full_disk(store):
        report = _swept(store, policy, waiting)
    return replace(report, removed=[*freed, *report.removed], bytes=before)


def _swept(store: Store, policy: Policy, waiting: Callable[[str], None]) -> Report:
    with lease(store, "gc", "gc", waiting=waiting) as held:
        decided = _decide(store, policy, dry_run=False)
        carry_out(_steps(store, decided, policy), held, "gc")
    return decided.report


@dataclass(frozen=True)
class _Decided:
    """A report, the same removals by the step in which they go, and whether a build runs."""

    report: Report
    steps: dict[int, list[Removal]] = field(default_factory=dict)
    busy: bool = True


def _decide(store: Store, policy: Policy, *, dry_run: bool) -> _Decided:
    """What gc would do now."""
    live = live_runs(store)
    inventory = whole_inventory(store, "what it needs isn't known, so nothing is removed")
    total = sum(inventory.keys.values())
    kept, dropped = choose(store, inventory, policy)
    for run in live:
        if not run["fingerprints"]:
            note = f"a build of '{run['recipe']}' ({holder_words(run.get('holder', {}))}) hasn't said yet what it needs: nothing goes now; try again later"
            return _Decided(Report([*kept, *dropped], [], [], total, note, dry_run))
    runs = logged_runs(store, inventory)
    sweep = Sweep(store, inventory, needed(store, inventory, kept, dropped, runs, live, policy), runs, live)
    steps = sweep.steps()
    return _Decided(Report(kept, dropped, [removal for step in sorted(steps) for removal in steps[step]], total, "", dry_run), steps, bool(live))


def _freed(store: Store, policy: Policy) -> list[Removal]:
    """Remove, without a lease, scratch and files that no record names, if no build runs.

    A build that begins meanwhile knows none of them: the unfinished work that it takes over isn't among them.
    """
    decided = _decide(store, policy, dry_run=False)
    left = [removal for removal in decided.steps.get(FILES, []) if removal.why == LEFT_OVER]
    left += [removal for removal in decided.steps.get(OBJECTS, []) if removal.key.startswith(f"{SCRATCH}/")]
    if decided.busy:
        return []
    for step in removing(store, {FILES: left}, busy=True):
        step()
    return left


def _steps(store: Store, decided: _Decided, policy: Policy) -> Iterator[Callable[[], None]]:
    """What has to be done, in an order in which it may stop anywhere."""
    for snapshot in decided.report.dropped:
        yield partial(_withdraw, store, snapshot, policy)
    yield from removing(store, decided.steps, busy=decided.busy)


def _withdraw(store: Store, snapshot: str, policy: Policy) -> None:
    way_out = f"`stillroom snapshots` lists those that stand; the recipe that made this one is in snapshots/{snapshot.replace('@', '/')}.json"
    withdraw(store, snapshot, by="gc", reason=f"gc kept {policy}", at=datetime.now(UTC).isoformat(timespec="seconds"), way_out=way_out)
