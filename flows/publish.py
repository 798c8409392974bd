"""From a finished build to a snapshot: gates, publishing, promotion, report."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from flows.manifest import stage_lines
from flows.plan import Plan
from flows.proof import judged_of, proof_of, verdict
from schemas.recipe import Recipe
from stillroom.digests import json_digest
from stillroom.errors import GateError, InputError
from stillroom.fields import label_names
from stillroom.records import Record, TableRef
from stillroom.snapshots import promoted as current_pointer
from stillroom.snapshots import withdrawn
from stillroom.stored import StoredTable, open_table, snapshot_fields
from stillroom.stores import Store
from storage import manifests
from tasks.environment import environment

if TYPE_CHECKING:
    from tasks.pool import Pool

__all__ = ["Published", "demote", "promote", "publish_build", "published_before"]


@dataclass(frozen=True)
class Published:
    """What publishing came to; `same` where an earlier snapshot already holds just this."""

    snapshot: str | None = None
    rows: int = 0
    proof: dict[str, Any] | None = None
    report: str | None = None
    promoted: bool = False
    same: bool = True
    notes: list[str] = field(default_factory=list)
    judged: list[dict[str, Any]] = field(default_factory=list)


def published_before(plan: Plan, records: dict[str, Record]) -> Published | None:
    """The snapshot that an earlier build made of just these stages, or None; if that build died since, the rest is done now."""
    store, recipe, fingerprint = Store(plan.store), plan.graph.recipe, _fingerprint(plan, records)
    found = store.read_json(f"published/{fingerprint}.json")
    if found is None:
        standing = [manifest for manifest in manifests.list_manifests(store, recipe.name) if not withdrawn(store, recipe.name, manifest["number"])]
        made = [manifest for manifest in standing if manifest["table"]["fingerprint"] == fingerprint]
        if not made:
            return None
        from storage.publish import tag_snapshots

        tag_snapshots(store, recipe.name)
        return _complete(store, recipe, made[0], same=True)
    return _published(store, store.read_json(f"snapshots/{found['name']}/{found['number']}.json"), same=True)


def publish_build(plan: Plan, records: dict[str, Record], pool: "Pool", seconds: float) -> Published:
    """Check the rows of every split, publish them as one table, promote it if it proves better, write its report.

    Raises:
        GateError: a check failed; nothing is published.
    """
    from storage.publish import publish_manifest, write_snapshot  # Lance: a build that finds its snapshot there doesn't wait for it
    from tasks.pool import Job

    store, recipe = Store(plan.store), plan.graph.recipe
    if before := published_before(plan, records):
        return before
    splits = _splits(plan, records)
    gates = [*pool.run([Job(_gates_job, (plan.store, splits, recipe))], stage="publish")[0], _rejects_gate(recipe, records)]
    failed = [gate for gate in gates if not gate["ok"]]
    if failed:
        raise GateError(recipe.name, f"{len(failed)} of {len(gates)} gates failed, nothing is published: {'; '.join(_told(gate) for gate in failed[:5])}")
    fingerprint = _fingerprint(plan, records)
    (written,) = pool.run([Job(write_snapshot, (plan.store, recipe.name, splits, recipe.seed, fingerprint, _index(recipe), _decoded(recipe)))], stage="publish")
    if not written.unique:
        raise GateError(recipe.name, "two published rows have the same sample id", "a sample belongs to one split only")
    proof = proof_of(plan, records)
    manifest = publish_manifest(
        store,
        {
            "format": 1,
            "name": recipe.name,
            "digest": written.table.digest,
            "rows": written.table.rows,
            "splits": {split: _rows(store, ref) for split, ref in splits},
            **written.facts(store),
            "recipe": {"text": recipe.text, "path": plan.graph.file, "overrides": list(recipe.overrides)},
            "seed": recipe.seed,
            "trial": plan.graph.rows is not None,
            "published": {str(split): {"stage": edge.stage, "split": edge.split} for split, edge in recipe.publish.splits.items()} if recipe.publish else {},
            "stages": stage_lines(plan, records),
            "environment": environment(),
            "gates": gates,
            "proof": proof,
            "judged": judged_of(plan, records),
            "seconds": round(seconds, 1),
        },
    )
    if manifest["table"]["fingerprint"] == fingerprint:
        return _complete(store, recipe, manifest, same=False)
    # What was published before under another fingerprint keeps its number, its report and its promotion.
    store.create_json(f"published/{fingerprint}.json", {"name": recipe.name, "number": manifest["number"]})
    return _published(store, manifest, same=True, notes=[f"the same rows as {recipe.name}@{manifest['number']}, which stays as it is"])


def _complete(store: Store, recipe: Recipe, manifest: dict[str, Any], *, same: bool) -> Published:
    """Do what follows manifest and tag, as far as it isn't done: promotion, report, and last the word that nothing is left to do."""
    name, number = manifest["name"], manifest["number"]
    notes = [] if manifests.was_promoted(store, name, number) else _promote_if_better(store, recipe, manifest)
    notes += [*_searched_as_it_is(manifest), *_read_as_they_are(manifest)]
    if store.read(f"snapshots/{name}/{number}.html") is None:
        _write_report(store, manifest)
    store.create_json(f"published/{manifest['table']['fingerprint']}.json", {"name": name, "number": number})
    return _published(store, manifest, same=same, notes=notes)


def promote(store: str, ref: str, reason: str) -> dict[str, Any]:
    """Make a snapshot the one that `open("name")` returns.

    Raises:
        InputError: there is no such snapshot, or it is a trial.
    """
    name, _, number = ref.partition("@")
    if not (number.isdecimal() and number.isascii() and len(number) < 19):
        raise InputError(ref, "names no number", f"write {name}@N; `stillroom snapshots` lists them")
    return manifests.promote(Store(store), name, int(number), reason)


def demote(store: str, name: str, reason: str) -> dict[str, Any]:
    """Take the latest promotion back: the one below it counts again, or none.

    Raises:
        InputError: nothing of that name is promoted.
    """
    return manifests.demote(Store(store), name, reason)


def _splits(plan: Plan, records: dict[str, Record]) -> list[tuple[str, TableRef]]:
    publish = plan.graph.recipe.publish
    assert publish is not None
    found = []
    for split, edge in publish.splits.items():
        table = records[edge.stage].table
        found.append((str(split), TableRef(table.name, table.version, table.rows, table.fingerprint, table.digest, edge.split)))
    return found


def _fingerprint(plan: Plan, records: dict[str, Record]) -> str:
    """What a snapshot depends on: its splits' tables, and the proof that it carries."""
    recipe = plan.graph.recipe
    proofs = [records[stage.name].fingerprint for stage in plan.stages if stage.resolved.operator.gives == "metrics" and stage.name in records]
    parts = [[split, ref.fingerprint, ref.split] for split, ref in _splits(plan, records)]
    require = recipe.publish.require.model_dump(mode="json") if recipe.publish else {}
    more = {"index": _index(recipe), "decoded": "" if _decoded(recipe) == "auto" else _decoded(recipe)}
    facts = {"snapshot": recipe.name, "seed": recipe.seed, "splits": parts, "proofs": proofs, "require": require, "rows": plan.graph.rows}
    return json_digest(facts | {key: value for key, value in more.items() if value})


def _index(recipe: Recipe) -> dict[str, str]:
    """The metric of each vector column that gets an index."""
    return dict(recipe.publish.index) if recipe.publish else {}


def _decoded(recipe: Recipe) -> Literal["auto", "always", "never"]:
    """Whether images are stored decoded as well."""
    return recipe.publish.decoded if recipe.publish else "never"


def _read_as_they_are(manifest: dict[str, Any]) -> list[str]:
    """What to say of images that are stored decoded as well."""
    told = manifest.get("decoded", {})
    return [f"images are stored decoded as well, {told['ratio']:.1f} times their size: trainers read them and decode nothing"] if told.get("stored") else []


def _searched_as_it_is(manifest: dict[str, Any]) -> list[str]:
    """What to say of columns that got no index."""
    few = {column: facts["vectors"] for column, facts in manifest.get("indexes", {}).items() if facts["kind"] is None}
    return [f"{column} got no index: {vectors:,} vectors are searched as fast without" for column, vectors in few.items()]


def _gates_job(store_uri: str, splits: list[tuple[str, TableRef]], recipe: Recipe) -> list[dict[str, Any]]:
    """Run every check over all rows of all splits, in a worker."""
    from schemas.expectations import columns_of, run_checks, suite_for

    store = Store(store_uri)
    tables = {split: StoredTable(store, ref) for split, ref in splits}
    schema = snapshot_fields(table.schema for table in tables.values())
    assert recipe.publish is not None
    checks = suite_for(schema, recipe.publish.require, label_names(schema))
    wanted = [name for name in columns_of(checks) if name in schema.names] or ["sample_id"]

    def batches() -> Any:
        for split, table in tables.items():
            names = [name for name in wanted if name in table.schema.names and name != "split"]
            for batch in table.scan(names, 8192):
                arrays = [
                    pa.array([split] * batch.num_rows)
                    if name == "split"
                    else batch[name]
                    if name in names
                    else pa.nulls(batch.num_rows, schema.field(name).type)
                    for name in wanted
                ]
                yield pa.record_batch(arrays, schema=pa.schema([schema.field(name) for name in wanted]))

    gates = [asdict(result) for result in run_checks(checks, batches())]
    return [*gates, _leak_gate(tables, recipe.publish.require.max_leaks)]


def _leak_gate(tables: dict[str, StoredTable], allowed: int) -> dict[str, Any]:
    """Rows of the training split whose picture, or id, also stands in validation or test."""
    import polars as pl

    keys = {split: table.frame(["sample_id", *(["image_hash"] if "image_hash" in table.schema.names else [])]) for split, table in tables.items()}
    train = keys.pop("train", pl.DataFrame({"sample_id": []}, {"sample_id": pl.String}))
    leaks: list[str] = []
    for split, held_out in keys.items():
        for column in train.columns:
            if column in held_out.columns:
                both = train.join(held_out.select(column), on=column, how="semi")
                leaks += [f"{sample} (also in {split})" for sample in both["sample_id"].to_list()]
    leaks = list(dict.fromkeys(leaks))
    return {
        "name": f"leakage: at most {allowed} training rows in validation or test",
        "expectation": "no_exact_leaks",
        "column": "image_hash",
        "ok": len(leaks) <= allowed,
        "rows": train.height,
        "failed": len(leaks),
        "examples": leaks[:20],
    }


def _rejects_gate(recipe: Recipe, records: dict[str, Record]) -> dict[str, Any]:
    assert recipe.publish is not None
    limit = recipe.publish.require.max_rejects
    worst = max(
        ((record.counts.get("rejected", 0) / max(1, record.came_in or 0), name) for name, record in records.items()),
        default=(0.0, ""),
    )
    rejected = sum(record.counts.get("rejected", 0) for record in records.values())
    return {
        "name": f"rejects: at most {limit:.1%} of a stage's rows",
        "expectation": "max_rejects",
        "column": "",
        "ok": worst[0] <= limit,
        "rows": max((r.counts.get("planned", 0) for r in records.values()), default=0),
        "failed": rejected,
        "examples": [worst[1]] if worst[0] else [],
    }


def _told(gate: dict[str, Any]) -> str:
    examples = f", such as {', '.join(str(example) for example in gate['examples'][:3])}" if gate["examples"] else ""
    return f"{gate['name']} ({gate['expectation']}) failed on {gate['failed']:,} of {gate['rows']:,} rows{examples}"


def _promote_if_better(store: Store, recipe: Recipe, manifest: dict[str, Any]) -> list[str]:
    """Promote a snapshot that meets `promote:`; otherwise say in one line what is missing."""
    ref = f"{manifest['name']}@{manifest['number']}"
    if manifest["trial"]:
        return [f"{ref} is a trial and is never promoted"]
    if recipe.publish is None or recipe.publish.promote is None:
        return [f"{ref} is published; `stillroom promote {ref} --reason …` makes it the one that open('{manifest['name']}') returns"]
    pointer = current_pointer(store, recipe.name)
    current = store.read_json(f"snapshots/{recipe.name}/{pointer['number']}.json") if pointer and pointer["number"] else None
    ok, why = verdict(recipe.publish.promote, manifest, current)
    if not ok:
        return [f"{ref} is not promoted: {why}"]
    manifests.promote(store, recipe.name, manifest["number"], why)
    return [f"{ref} is promoted: {why}"]


def _write_report(store: Store, manifest: dict[str, Any]) -> None:
    from flows.report.render import render

    by_name = {stage["name"]: stage for stage in manifest["stages"]}
    html = render(manifest, lambda name: open_table(store, by_name[name]["table"]), lambda name: open_table(store, by_name[name]["removed"]))
    manifests.write_report(store, manifest["name"], manifest["number"], html)


def _published(store: Store, manifest: dict[str, Any], *, same: bool, notes: list[str] | None = None) -> Published:
    name, number = manifest["name"], manifest["number"]
    pointer = current_pointer(store, name)
    key = f"snapshots/{name}/{number}.html"
    report = str(store.local / key) if store.local else f"{store.uri}/{key}"
    return Published(
        f"{name}@{number}", manifest["rows"], manifest["proof"], report, pointer is not None and pointer["number"] == number, same, notes or [],
        manifest.get("judged") or [],
    )  # fmt: skip


def _rows(store: Store, ref: TableRef) -> int:
    return StoredTable(store, ref).rows
