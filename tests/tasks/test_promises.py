"""What every operator promises, tested once over all of them: worker count, names, schemas, accounts, versions.

One small recipe holds every operator of `tasks`, hidden ones included. A new operator belongs into it,
and is then under all promises without a test of its own. (That a row doesn't depend on its batch is
tested beside each operator, where its inputs are made.)

`ledger.json` has for each operator its version and a digest of its output in this recipe, removed rows
and their reasons among it: floats count to three decimals, vectors by their numbers. What training made differs in its last bits between
machines, and so do choices that were made by it: of such outputs, only the schema counts, and of
models, scores and metrics the number of rows. STILLROOM_WRITE_LEDGER=1 writes the ledger anew.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flows.build import BuildResult, build_recipe
from flows.plan import Plan, make_plan
from stillroom import registry
from stillroom.digests import json_digest
from stillroom.fields import heavy_kind
from stillroom.images import encode_png
from stillroom.stored import StoredTable, open_table
from stillroom.stores import Store

pytestmark = [pytest.mark.server, pytest.mark.slow]

LEDGER = Path(__file__).with_name("ledger.json")

RECIPE = """name: promises
seed: 7
stages:
  folder: {op: ingest.image_folder, path: folder}
  packed: {op: ingest.idx, images: images.idx, labels: labels.idx}
  rows: {op: ingest.parquet, path: rows.parquet}
  twice: {op: ingest.parquet, path: rows.parquet, id: row}
  single: {op: filter.exact_duplicates, from: twice}
  hub: {op: ingest.hf_dataset, path: hub}
  digits: {op: ingest.digits}
  few: {op: table.sample, from: digits, rows: 160}
  parts: {op: table.split, from: few, validation: 20%, test: 20%}
  mended: {op: table.relabel, from: parts, file: labels.csv}
  sound: {op: filter.decodable, from: mended}
  hashed: {op: score.perceptual_hash, from: sound}
  apart: {op: filter.near_duplicates, from: hashed, max_distance: 10}
  looks: {op: score.embed, from: apart, net: pixels, side_px: 8, channels: 1}
  drawn: {op: prune.random, from: looks.train, keep: 50%}
  ranked: {op: prune.by_score, from: looks.train, score: phash, hard: high, order: middle, keep: 50%}
  strata: {op: prune.ccs, from: ranked, score: phash, hard: high, cut_off: 10%, keep: 90%}
  herd: {op: prune.herding, from: strata, keep: 90%}
  centers: {op: prune.k_center, from: herd, keep: 90%}
  usual: {op: prune.moderate, from: centers, keep: 90%}
  sized: {op: score.image_bytes, from: looks.train}
  said: {op: score.predictions, from: {samples: sized, model: bought}}
  slopes: {op: score.gradients, from: {samples: said, model: bought}}
  spread: {op: prune.d2, from: slopes, vectors: embedding, score: phash, hard: high, keep: 90%}
  covered: {op: prune.facility_location, from: spread, vectors: gradient, keep: 90%}
  asked: {op: prune.robust_active, from: covered, teacher_accuracy: 90%, keep: 90%}
  both: {op: table.mix, from: {drawn: drawn, ranked: usual}, weights: {drawn: 2, ranked: 1}}
  core: {op: prune.k_medoids, from: looks.train, vectors: embedding, keep: 60%, balance: label}
  hardness: {op: score.dynamics, from: core, net: "cnn:4", epochs: 2, el2n_epochs: [1], seeds: 1}
  far: {op: score.prototypes, from: hardness, vectors: embedding, clusters: 3}
  first: {op: prune.herding, from: looks.train, images_per_class: 1}
  tiled: {op: distill.pca, from: looks.train, images_per_class: 1, grid: 1, score: phash, hard: high}
  seen: {op: reinforce.views, from: tiled, count: 2, policy: [crop, flip]}
  viewed: {op: reinforce.views, from: looks.train, count: 2, policy: [crop]}
  blended: {op: reinforce.views, from: looks.train, count: 3, policy: [randaugment, jitter, random_field, erase, mixup, cutmix, resizemix, selfmix]}
  pointed: {op: reinforce.prototypes, from: {samples: viewed, known: core}}
  zca: {op: train.zca, from: apart.train}
  whitened: {op: table.whiten, from: {samples: apart.validation, whitening: zca}, side_px: 8, channels: 1}
  experts: {op: train.experts, from: {samples: apart.train, whitening: zca}, net: "mlp:4", experts: 2, epochs: 2, batch_size: 32, augment: [shift]}
  distilled:
    op: distill.tesla
    from: {samples: first, experts: experts, tune: apart.validation, whitening: zca}
    side_px: 8
    channels: 1
    iterations: 2
    steps: 2
    labels: soft
    check_nets: 1
    check_epochs: 2
  means: {op: distill.dm, from: {samples: first, real: apart.train}, side_px: 8, channels: 1, net: "mlp:4", iterations: 2, batch_size: 4}
  judged:
    op: evaluate.distilled
    from: {tesla: distilled, dm: means, pca: seen, real: apart.train, test: apart.test, whitening: zca}
    nets: ["mlp:4"]
    seeds: 2
    epochs: 2
    real_epochs: 1
  bought: {op: ingest.model, from: {check_on: apart.validation}, file: model.safetensors, net: "cnn:4", side_px: 8, channels: 1, mean: [0.3], std: [0.4], classes: classes.txt}
  teacher: {op: train.teacher, from: {samples: apart.train, check_on: apart.validation}, net: "cnn:8", steps: 60, batch_size: 32}
  folded: {op: train.teacher, from: apart.train, net: "cnn:4", steps: 4, batch_size: 16, folds: 2}
  fair: {op: reinforce.teacher, from: {samples: looks.train, teacher: folded}, judge: unseen, views: {count: 1, policy: [affine]}}
  head: {op: train.projector, from: fair, rank: 4, steps: 20}
  painter: {op: train.class_diffusion, from: apart.train, width: 8, steps: 2, batch_size: 8}
  painted: {op: generate.class_diffusion, from: painter, per_class: 2, steps: 2}
  agreed: {op: filter.teacher_agreement, from: {samples: far, teacher: teacher}, min_probability: 0.0}
  mixed: {op: table.mix, from: {real: agreed, synthetic: painted}}
  ready: {op: reinforce.teacher, from: {samples: mixed, teacher: bought, ask: asked}, views: {count: 2, policy: [identity, affine]}}
  edge: {op: reinforce.hard_views, from: {samples: apart.train, teacher: bought, student: folded}, candidates: 4, views: {count: 2, policy: [affine]}}
  calm: {op: reinforce.calibrate, from: ready, thresholds: quantile, discard_below: 20%, soften_below: 50%}
  proof:
    op: evaluate.student
    from: {candidate: ready, raw: apart.train, tune: apart.validation, test: apart.test}
    control: {in_place_of: core, pool: looks.train}
    student: {net: "cnn:4", steps: 2, batch_size: 16, learning_rates: [0.003], tune_seeds: 1, seeds: 2}
publish:
  splits: {train: ready, validation: apart.validation, test: apart.test}
  require: {max_rejects: 5%}
"""

RENAMED = {"parts": "thirds", "looks": "vectors-of", "core": "kernel", "hardness": "trouble", "painted": "made-up", "ready": "finished", "proof": "exam"}


def renamed(text: str) -> str:
    for old, new in RENAMED.items():
        text = re.sub(rf"\b{old}\b", new, text)
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe, and what its sources read: some of scikit-learn's digits in four formats, corrections, a model."""
    import datasets
    import pyarrow.parquet as pq
    from safetensors.torch import save_file
    from sklearn.datasets import load_digits

    from tasks.nets.zoo import build

    folder = tmp_path_factory.mktemp("promises")
    pixels_NHW, labels_N = load_digits(return_X_y=True)
    pixels_NHW = (pixels_NHW[:24].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    labels = labels_N[:24].tolist()
    images = [encode_png(pixels_HW[:, :, None]) for pixels_HW in pixels_NHW]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = folder / "folder" / str(label) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image if number else image[:40])  # one file is cut
    for name, array in (("images", pixels_NHW), ("labels", np.array(labels, np.uint8))):
        sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / f"{name}.idx").write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
    pq.write_table(pa.table({"image": images + images[:2], "label": [f"class {label}" for label in labels + labels[:2]]}), folder / "rows.parquet")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    datasets.Dataset.from_dict({"image": [{"bytes": image, "path": None} for image in images], "label": labels}, features).save_to_disk(folder / "hub")
    (folder / "labels.csv").write_text("source,label\n" + "\n".join(f"digits:{row},8" for row in range(0, 1797, 50)), encoding="utf-8")
    net = build("cnn:4", num_classes=10, channels=1, side_px=8)
    # Weights that no library's way of drawing numbers has a part in; variances are not negative.
    counted = {name: ((np.arange(tensor.numel()) % 7 - (0 if "var" in name else 3)) / 10).reshape(tensor.shape) for name, tensor in net.state_dict().items()}
    save_file({name: tensor.new_tensor(counted[name]) for name, tensor in net.state_dict().items()}, folder / "model.safetensors")
    (folder / "classes.txt").write_text("\n".join(map(str, range(10))), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "renamed.yaml").write_text(renamed(RECIPE), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def built(folder: Path) -> Iterator[tuple[BuildResult, Plan]]:
    """The recipe in a fresh store, with one worker."""
    result = build_recipe(str(folder / "recipe.yaml"), folder / "one", workers=1)
    yield result, make_plan(folder / "recipe.yaml", folder / "one")


def test_the_recipe_holds_every_operator(built):
    _, plan = built
    ours = {name for name, module in registry.operators().items() if module.startswith("tasks.")}
    missing = sorted(ours - {stage.op for stage in plan.stages})
    assert not missing, f"put {', '.join(missing)} into the recipe of {Path(__file__).name}: its promises are tested there"


def test_neither_workers_nor_names_of_stages_change_a_digest(built, folder):
    one, plan = built
    three = build_recipe(str(folder / "renamed.yaml"), folder / "three", workers=3)
    other = make_plan(folder / "renamed.yaml", folder / "three")
    digests = {stage.prints.table: stage.record.table.digest for stage in other.stages}
    differ = [stage.name for stage in plan.stages if digests[stage.prints.table] != stage.record.table.digest]
    assert differ == []
    assert [renamed(stage.name) for stage in plan.stages] == [stage.name for stage in other.stages] != [stage.name for stage in plan.stages]
    snapshots = [Store(folder / store).read_json("snapshots/promises/1.json")["digest"] for store in ("one", "three")]
    assert snapshots[0] == snapshots[1]
    assert (one.snapshot, three.snapshot) == ("promises@1", "promises@1")


def test_renaming_stages_runs_none(built, folder):
    assert make_plan(folder / "renamed.yaml", folder / "one").running == []


def test_the_declared_schema_is_the_written_one(built):
    _, plan = built
    store = Store(plan.store)
    for stage in plan.stages:
        written = StoredTable(store, stage.record.table).schema
        assert written.equals(stage.resolved.schema, check_metadata=True), f"stage '{stage.name}' ({stage.op})"


def test_every_row_is_accounted_for(built):
    _, plan = built
    records = {stage.name: stage.record for stage in plan.stages}
    for stage in plan.stages:
        counts = stage.record.counts
        left = {kind: counts.get(kind, 0) for kind in ("dropped", "rejected", "merged")}
        removed = open_table(Store(plan.store), stage.record.removed).frame()["kind"].to_list() if stage.record.removed else []
        assert left == {kind: removed.count(kind) for kind in left}, stage.name
        assert counts["out"] == stage.record.table.rows, stage.name
        if stage.resolved.operator.shape in ("row", "select"):
            flowing = [edge for name, edge in stage.resolved.inputs.items() if declared(stage, name).kind == "samples" and not declared(stage, name).reference]
            flowing = flowing[:1] if stage.resolved.operator.shape == "row" else flowing
            came = sum(
                StoredTable(Store(plan.store), type(records[edge.stage].table)(**(vars(records[edge.stage].table) | {"split": edge.split}))).rows
                for edge in flowing
            )
            assert came == counts["in"] == counts["out"] + sum(left.values()), stage.name
    assert records["folder"].counts["rejected"] == 1
    assert records["rows"].counts["merged"] == 2


def declared(stage: Any, name: str) -> Any:
    return stage.resolved.operator.inputs.get(name) or stage.resolved.operator.inputs["*"]


def test_an_output_that_moved_has_a_new_version(built):
    _, plan = built
    found = ledger(plan)
    if os.environ.get("STILLROOM_WRITE_LEDGER") == "1":
        LEDGER.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    known = json.loads(LEDGER.read_text(encoding="utf-8"))
    again = "rewrite the ledger: STILLROOM_WRITE_LEDGER=1 python -m pytest tests/tasks/test_promises.py"
    for name, line in found.items():
        before = known.get(name, {})
        moved_itself = before and line["output"] != before["output"] and line["inputs"] == before["inputs"]
        assert not (moved_itself and line["version"] == before["version"]), f"the output of {name} moved: raise the version of {name}, then {again}"
    assert found == known, f"versions were raised, or operators or inputs changed: {again}"


def ledger(plan: Plan) -> dict[str, dict[str, Any]]:
    """For each operator its version and the digests of what came in (parameters too) and what went out, of one of its stages.

    Of several stages, the first that no training had a part in.
    """
    outputs: dict[str, str] = {}
    learned: dict[str, bool] = {}
    lines: dict[str, tuple[bool, dict[str, Any]]] = {}
    for stage in plan.stages:
        above = [edge.stage for edge in stage.resolved.inputs.values()]
        # A model, and all that a model or a training had a part in.
        learned[stage.name] = stage.resolved.operator.shape in ("train", "measure") or stage.op == "score.dynamics" or any(learned[name] for name in above)
        outputs[stage.name] = output(plan, stage, learned[stage.name])
        line = {
            "version": stage.resolved.operator.version,
            "inputs": json_digest([[str(edge), outputs[edge.stage]] for edge in stage.resolved.inputs.values()])[:16],
            "output": outputs[stage.name],
        }
        if stage.op not in lines or lines[stage.op][0] > learned[stage.name]:
            lines[stage.op] = (learned[stage.name], line)
    return {name: line for name, (_, line) in sorted(lines.items())}


def output(plan: Plan, stage: Any, learned: bool) -> str:
    table = StoredTable(Store(plan.store), stage.record.table)
    described = [[field.name, str(field.type), {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}] for field in table.schema]
    if learned:
        fixed = stage.resolved.operator.shape in ("train", "score", "measure")
        return json_digest([described, table.rows if fixed else None])[:16]
    vectors = [field.name for field in table.schema if heavy_kind(field) == "vector"]
    names = [field.name for field in table.schema if field.name in vectors or not (heavy_kind(field) or field.name.removesuffix("_hash") in vectors)]
    rows = [rounded(row) for batch in table.scan(names) for row in batch.to_pylist()]
    left = open_table(Store(plan.store), stage.record.removed).frame().sort("sample_id").rows() if stage.record.removed else []
    return json_digest([described, rows, left])[:16]


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    if isinstance(value, float):
        return str(round(value, 3) + 0.0)
    return value.hex() if isinstance(value, bytes) else value
