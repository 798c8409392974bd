"""Forgetting beyond the store: contact sheets in the Prefect UI, and the recipes that have to be built again."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from flows.server import public_url, server_status
from stillroom.errors import StillroomError
from stillroom.snapshots import manifest_of
from stillroom.stores import Store
from storage.forget import Forgotten, forget
from storage.runs import list_runs

__all__ = ["Again", "forget_samples", "rebuild_withdrawn"]

TIMEOUT_S = 10


@dataclass(frozen=True)
class Again:
    """What became of building the recipes of withdrawn snapshots again: what was made for each, and what went wrong."""

    made: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def forget_samples(
    store: str, samples: Sequence[str], *, reason: str = "", dry_run: bool = False, waiting: Callable[[str], None] = lambda holder: None
) -> tuple[Forgotten, list[str]]:
    """As `storage.forget.forget`; then pictures of the recipes concerned go from this user's Prefect server.

    Returns:
        What was forgotten, and remarks on what somebody has to look after.
    """
    found = forget(Store(store), samples, reason=reason, dry_run=dry_run, waiting=waiting)
    recipes = {snapshot.partition("@")[0] for snapshot in found.snapshots}
    return found, [] if dry_run else _clear_pictures([run for run in list_runs(Store(store)) if run["recipe"] in recipes and run.get("flow_run")])


def rebuild_withdrawn(store: str, snapshots: Sequence[str], listener: Any = None) -> Again:
    """Build the recipes of withdrawn snapshots again, of each name and kind (trial or not) the latest."""
    from flows.rebuild import build_again

    latest: dict[tuple[str, bool], dict[str, Any]] = {}
    for snapshot in snapshots:
        manifest = manifest_of(snapshot, store)
        key = (manifest["name"], manifest["trial"])
        if key not in latest or latest[key]["number"] < manifest["number"]:
            latest[key] = manifest
    again = Again()
    for manifest in latest.values():
        snapshot = f"{manifest['name']}@{manifest['number']}"
        try:
            again.made[snapshot] = build_again(manifest, Store(store), Store(store), listener=listener)
        except StillroomError as error:
            again.failed[snapshot] = str(error)
    return again


def _clear_pictures(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Delete the contact sheets of these builds from this user's own server; say of others that they have some."""
    server = server_status()
    mine = [run["flow_run"]["id"] for run in runs if server and run["flow_run"]["api"] == public_url(server.url)]
    elsewhere = sorted({run["flow_run"]["api"] for run in runs if run["flow_run"]["id"] not in mine})
    if server and mine:
        try:
            wanted = {"artifacts": {"key": {"like_": "samples-%"}}, "flow_runs": {"id": {"any_": mine}}}
            while found := _ask(server.url, "POST", "artifacts/filter", wanted):
                for artifact in found:
                    _ask(server.url, "DELETE", f"artifacts/{artifact['id']}")
        except (OSError, ValueError) as error:
            return [f"the Prefect UI may still show pictures of these recipes: {error}"]
    return [f"builds of these recipes left pictures at the Prefect server {api}: delete their artifacts `samples-…`" for api in elsewhere]


def _ask(api: str, method: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"{api.rstrip('/')}/{path}", data, {"content-type": "application/json"}, method=method)
    with build_opener(ProxyHandler({})).open(request, timeout=TIMEOUT_S) as answer:
        raw = answer.read()
    with suppress(ValueError):
        return json.loads(raw)
    return None
