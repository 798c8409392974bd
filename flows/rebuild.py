"""Rebuild: a snapshot made again from nothing but its manifest and its sources, and compared digest by digest."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.build import Listener, build_recipe
from flows.home import home
from flows.resolve import source_paths
from schemas.secrets import REDACTED
from stillroom import registry
from stillroom.digests import json_digest
from stillroom.errors import InputError, StillroomError
from stillroom.format import FORMAT_KEY, require_format
from stillroom.snapshots import manifest_of
from stillroom.stores import Store
from storage.runs import list_runs
from storage.tombstones import carry_tombstones
from tasks.environment import environment

__all__ = ["Compared", "Rebuilt", "build_again", "differences", "rebuild"]


@dataclass(frozen=True)
class Compared:
    """One thing that was made twice: a stage, or at last the snapshot. `now` is None where it wasn't made again."""

    name: str
    op: str
    before: str
    now: str | None

    @property
    def same(self) -> bool:
        """Whether it came out the same."""
        return self.before == self.now


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild came to.

    Args:
        snapshot: what was made again; `made` is its name in the new store.
        differs: packages and traits of the machine that are others now: name, before, now.
        compared: each stage, then the snapshot.
        notes: what to know when reading them.
    """

    snapshot: str
    made: str | None
    differs: list[dict[str, Any]]
    compared: list[Compared] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether everything came out the same."""
        return all(one.same for one in self.compared)


def rebuild(
    name: str, store: str | Store, into: str | Store, overrides: Sequence[str] = (), *, workers: int | None = None, listener: Listener | None = None
) -> Rebuilt:
    """Make a snapshot again in an empty store, and compare every digest with its manifest's.

    Args:
        name: such as `digits@3`.
        store: where its manifest is.
        into: an empty store; one in which the same rebuild was interrupted goes on.
        overrides: changes beyond the manifest's own, such as where a source lies by now.
        workers, listener: as for a build.

    Raises:
        InputError: no such snapshot, or the store isn't empty.
        StillroomError: what a build says: a source that is gone, a gate that refuses.
    """
    manifest = manifest_of(name, store)
    target, snapshot = Store(into), f"{manifest['name']}@{manifest['number']}"
    _require_empty(target, manifest["name"])
    notes = ["it was imported: its rows came from another store, and are made here from the sources"] if "imported" in manifest else []
    if forgotten := carry_tombstones(Store(store), target):
        notes.append(f"what {Store(store).uri} has forgotten ({forgotten} times) is left out here too")
    made = build_again(manifest, Store(store), target, overrides, workers=workers, listener=listener)
    found = manifest_of(made, target)
    now = {stage["name"]: stage["digest"] for stage in found["stages"]}
    compared = [Compared(stage["name"], stage["op"], stage["digest"], now.get(stage["name"])) for stage in manifest["stages"]]
    compared.append(Compared(snapshot, "the snapshot", manifest["digest"], found["digest"]))
    return Rebuilt(snapshot, made, differences(manifest), compared, notes)


def build_again(
    manifest: Mapping[str, Any], store: Store, into: Store, overrides: Sequence[str] = (), *, workers: int | None = None, listener: Listener | None = None
) -> str:  # fmt: skip
    """Build the recipe of a manifest as it ran: text, `--set`, rows of a trial, sources where they were; the snapshot's name.

    Raises:
        StillroomError: what a build says.
    """
    file = _recipe_file(manifest, store)
    changed = [*manifest["recipe"]["overrides"], *([] if file else _places(manifest)), *overrides]
    rows = _trial_rows(manifest)
    result = build_recipe(file or _written(manifest), into.uri, changed, rows=rows, workers=workers, listener=listener)
    if result.snapshot is None:
        raise InputError(str(manifest["name"]), "its recipe publishes nothing", "`stillroom show` prints it")
    return result.snapshot


def differences(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Packages and traits of the machine that are others now than when the snapshot, or a stage that it reused, was made."""
    now = _traits(environment())
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for made in [manifest.get("environment") or {}, *(stage.get("environment") or {} for stage in manifest["stages"])]:
        for name, before in _traits(made).items():
            if before != now.get(name):
                found.setdefault((name, before), {"what": name, "before": before, "now": now.get(name, "")})
    return list(found.values())


def _traits(found: Mapping[str, Any]) -> dict[str, str]:
    """An environment, flat: python, machine, cores, and each package."""
    flat = {name: str(value) for name, value in found.items() if name != "packages"}
    return flat | {name: str(version) for name, version in found.get("packages", {}).items()}


def _require_empty(store: Store, recipe: str) -> None:
    """Refuse a store in which there is more than an interrupted rebuild of this recipe: what is there would be reused, not made."""
    require_format(store)
    keys = store.list("")
    others = [run["recipe"] for run in list_runs(store) if run["recipe"] != recipe] if keys else []
    if others or (keys and FORMAT_KEY not in keys) or any(key.startswith("snapshots/") for key in keys):
        raise InputError(store.uri, "isn't empty, and what is there would be taken instead of made", "name a folder that isn't there yet")


def _recipe_file(manifest: Mapping[str, Any], store: Store) -> Path | None:
    """The file that the snapshot was built from, if the log still knows it and it still says the same."""
    for run in list_runs(store):
        words = shlex.split(run["command"])
        if run["recipe"] == manifest["name"] and words[:2] == ["stillroom", "build"] and len(words) > 2:
            path = Path(words[2])
            if path.is_file() and path.name == manifest["recipe"]["path"] and _text(path) == manifest["recipe"]["text"]:
                return path
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None


def _written(manifest: Mapping[str, Any]) -> Path:
    """The recipe in a file of its own, at a place that stays: the command that goes on with a build names it."""
    text = manifest["recipe"]["text"]
    path = home() / "recipes" / json_digest(text)[:16] / (Path(manifest["recipe"]["path"] or "").name or f"{manifest['name']}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _places(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Where the sources were, absolute: the recipe's own paths are relative to a folder that no manifest names."""
    for stage in manifest["stages"]:
        if stage["hidden"]:
            continue
        try:
            operator = registry.load(stage["op"])
            paths = source_paths(operator.params.model_validate(stage["params"]))
        except (StillroomError, ValueError):
            continue  # the build will say what is the matter with it
        for name, path in paths.items():
            if REDACTED not in str(path):  # it came from the environment, and comes from there again
                yield f"{stage['name']}.{name}={json.dumps(str(path), ensure_ascii=False)}"


def _trial_rows(manifest: Mapping[str, Any]) -> int | None:
    """How many rows a trial was asked for, which only its added stages say."""
    if not manifest["trial"]:
        return None
    rows = [stage["params"]["rows"] for stage in manifest["stages"] if stage["hidden"] and stage["name"].endswith("--trial")]
    return int(rows[0]) if rows else None
