"""A made-up build of the digits: real pictures, and figures that are invented but plausible."""

import copy
import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stillroom.draws import Draw
from stillroom.fields import image_field, label_field
from stillroom.images import encode_png
from stillroom.soft_labels import encode, soft_label_type
from stillroom.tables import MemoryTable
from stillroom.views import ViewPolicy, draw_views, view_contract, views_field

NAMES = [str(digit) for digit in range(10)]
RECIPE = """\
# Figures in this test's report are invented.
name: digits
seed: 7
stages:
  raw:       {op: ingest.digits}
  split:     {op: table.split, from: raw, validation: 20%, test: 20%}
  clean:     {op: filter.near_duplicates, from: split.train}
  scores:    {op: score.dynamics, from: clean, epochs: 20}
  core:      {op: prune.k_medoids, from: scores, keep: 10%}
  teacher:   {op: train.teacher, from: clean, seeds: 3}
  diffusion: {op: train.class_diffusion, from: clean, steps: 1500}
  drawn:     {op: generate.class_diffusion, from: diffusion, per_class: 60}
  agreed:    {op: filter.teacher_agreement, from: {samples: drawn, teacher: teacher}}
  mixed:     {op: table.mix, from: {core: core, drawn: agreed}}
  reinforced:
    op: reinforce.teacher
    from: {samples: mixed, teacher: teacher, check_on: split.validation}
    views: {count: 8, policy: [identity, affine]}
  proof:
    op: evaluate.student
    from: {candidate: reinforced, raw: split.train, tune: split.validation, test: split.test}
    control: {in_place_of: core, pool: clean}
publish:
  splits: {train: reinforced, validation: split.validation, test: split.test}
"""


def hexed(text: str, length: int = 64) -> str:
    return hashlib.blake2b(text.encode()).hexdigest()[:length]


def samples(pixels_BHW: np.ndarray, labels_B: np.ndarray, *, prefix: str = "digits", synthetic: bool = False, split: list[str] | None = None) -> pa.Table:
    """A table of samples as an ingest or a generator leaves it."""
    schema = pa.schema(
        [
            pa.field("sample_id", pa.string()),
            image_field(),
            label_field(NAMES),
            pa.field("label_name", pa.string()),
            pa.field("source", pa.string()),
            pa.field("synthetic", pa.bool_()),
        ]
    )
    count = len(labels_B)
    table = pa.table(
        {
            "sample_id": [hexed(f"{prefix}/{row}", 32) for row in range(count)],
            "image": [encode_png(pixels_HW[..., None]) for pixels_HW in pixels_BHW],
            "label": labels_B.astype(np.int64),
            "label_name": [NAMES[label] for label in labels_B],
            "source": [f"{prefix}/{row}" for row in range(count)],
            "synthetic": [synthetic] * count,
        },
        schema=schema,
    )
    return table if split is None else table.append_column("split", pa.array(split))


def with_views(table: pa.Table, count: int = 8) -> pa.Table:
    """The table with stored views, and soft labels of a made-up teacher that is mostly right."""
    policy = ViewPolicy(kinds=("identity", "affine"))
    views = draw_views(policy, table["sample_id"].to_pylist(), np.full((table.num_rows, 2), 8), Draw(7, "reinforce.teacher"), count)
    logits = np.random.default_rng(1).normal(0, 1.4, (table.num_rows * count, 10))
    logits[np.arange(len(logits)), np.repeat(table["label"].to_numpy(), count)] += 5
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    field = views_field(view_contract(policy), soft_label_type(10, None), {"num_classes": 10, "top_k": None, "temperature": 1.0})
    flat = views.flatten()
    structs = pa.StructArray.from_arrays([*flat.flatten(), encode(probs, None)], fields=list(field.type.value_type))
    return table.append_column(field, pa.ListArray.from_arrays(views.offsets, structs).cast(field.type))


def removed_rows(table: pa.Table, reason: Callable[[int], str], kind: str = "dropped") -> pa.Table:
    """A `removed` table of these rows."""
    count = table.num_rows
    return pa.table(
        {
            "sample_id": table["sample_id"],
            "source": table["source"].cast(pa.string()),
            "reason": pa.array([reason(row) for row in range(count)], pa.string()),
            "kind": pa.array([kind] * count, pa.string()),
        }
    )


def stage(
    name: str,
    op: str,
    shape: str,
    inputs: dict[str, str],
    rows: int,
    seconds: float,
    *,
    gives: str = "samples",
    hidden: bool = False,
    params: dict[str, Any] | None = None,
    **counts: int,
) -> dict[str, Any]:
    """A stage of a manifest; inputs as in a recipe ("split.train")."""
    edges = {
        key: {"stage": edge, "split": None} if "--" in edge else {"stage": edge.partition(".")[0], "split": edge.partition(".")[2] or None}
        for key, edge in inputs.items()
    }
    gone = sum(counts.get(kind, 0) for kind in ("dropped", "rejected", "merged"))
    return {
        "name": name, "op": op, "version": 1, "shape": shape, "gives": gives, "hidden": hidden, "state": "Built", "fingerprint": hexed(name), "inputs": edges, "params": params or {}, "seed": 7,
        "seconds": seconds, "rows": rows, "counts": {"in": rows + gone, "out": rows, "dropped": 0, "rejected": 0, "merged": 0} | counts, "digest": hexed(f"digest of {name}"),
        "table": {"name": f"stages/digits.{name}", "version": 1}, "removed": {"name": f"stages/digits.{name}.removed", "version": 1, "rows": gone}, "metrics": {},
    }  # fmt: skip


def arm(name: str, rows: int, accuracy: float, half: float, *, lr: float = 0.003) -> dict[str, Any]:
    """An arm of a proof; the classes 8 and 1 come out worst."""
    per_class = [{"label_name": digit, "accuracy": accuracy - {"8": 0.052, "1": 0.031, "9": 0.024}.get(digit, -0.01)} for digit in NAMES]
    return {
        "arm": name, "rows": rows, "lr": lr, "seeds": 5, "accuracy": accuracy, "low": accuracy - half, "high": accuracy + half, "nll": 3 * (1 - accuracy), "ece": 0.4 * (1 - accuracy),
        "seconds": 6.2, "per_class": per_class,
    }  # fmt: skip


PROOF = {
    "stage": "proof",
    "table": {"name": "stages/digits.proof", "version": 1},
    "arms": [
        arm("raw.hard", 1078, 0.984, 0.004),
        arm("candidate.hard", 612, 0.976, 0.005),
        arm("candidate.stored", 612, 0.982, 0.004),
        arm("control.hard", 612, 0.969, 0.005),
        arm("control.stored", 612, 0.974, 0.005),
        arm("without_drawn.hard", 108, 0.955, 0.008),
        arm("without_drawn.stored", 108, 0.968, 0.006),
    ],
    "differences": [
        {"arm": "candidate.stored", "against": "control.stored", "gain": 0.008, "low": 0.003, "high": 0.013},
        {"arm": "candidate.hard", "against": "control.hard", "gain": 0.007, "low": 0.001, "high": 0.013},
        {"arm": "candidate.stored", "against": "candidate.hard", "gain": 0.006, "low": -0.001, "high": 0.012},
        {"arm": "candidate.stored", "against": "without_drawn.stored", "gain": 0.014, "low": 0.008, "high": 0.020},
        {"arm": "candidate.stored", "against": "raw.hard", "gain": -0.002, "low": -0.006, "high": 0.002},
    ],
}


def judged(random: float = 0.2, herding: float = 0.1) -> list[dict[str, Any]]:
    """What a manifest says of one judged set of 70 % accuracy, with these gains, on one net; and a gain on another net that says otherwise."""
    common = {"set": "tesla", "net": "mlp:128", "labels": "hard", "augmented": False, "main": True, "protocol": "table", "seeds": 5, "test_rows": 382}
    arms = {"candidate": 0.7, "random": 0.7 - random, "herding": 0.7 - herding}
    lines = [{"kind": "arm", **common, "arm": name, "rows": 10, "accuracy": value, "low": value - 0.02, "high": value + 0.02} for name, value in arms.items()]
    for name, gain, net in (("random", random, "mlp:128"), ("herding", herding, "mlp:128"), ("random", -0.3, "convnet3:16")):
        difference = {"arm": "candidate", "against": f"{name}.hard", "gain": gain, "low": gain - 0.01, "high": gain + 0.01}
        lines.append({"kind": "difference", **common, **difference, "net": net})
    return [{"stage": "judged", "sets": {"tesla": "distilled", "real": "clean"}, "lines": lines}]


@pytest.fixture(scope="session")
def digits_tables() -> SimpleNamespace:
    """Tables and removed rows of a build by stage, from scikit-learn's digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels_BHW, labels_B = (data.images * 255 / 16).round().astype(np.uint8), data.target
    generator = np.random.default_rng(0)
    splits = generator.choice(["train", "validation", "test"], len(labels_B), p=[0.6, 0.2, 0.2])
    raw = samples(pixels_BHW, labels_B)
    split = raw.append_column("split", pa.array(splits))
    train = split.filter(pa.array(splits == "train"))
    twins = np.arange(train.num_rows) % 154 == 3
    clean = train.filter(pa.array(~twins))
    core = clean.take(pa.array(np.sort(generator.choice(clean.num_rows, 108, replace=False))))
    rest = clean.filter(pa.compute.invert(pa.compute.is_in(clean["sample_id"], value_set=core["sample_id"])))
    wanted = np.repeat(np.arange(10), 60)
    # "Generated" digits: the mean of two real ones of a class.
    pairs = [generator.choice(np.flatnonzero(labels_B == digit), 2) for digit in wanted]
    drawn = samples(np.stack([pixels_BHW[pair].mean(axis=0).astype(np.uint8) for pair in pairs]), wanted, prefix="drawn", synthetic=True)
    doubted = np.arange(600) % 6 == 1
    doubted[500:504] = True
    agreed = drawn.filter(pa.array(~doubted))
    mixed = pa.concat_tables([core.drop_columns(["split"]), agreed])
    tables = {
        "raw": raw,
        "split": split,
        "clean": clean,
        "scores": clean,
        "core": core,
        "drawn": drawn,
        "agreed": agreed,
        "mixed": mixed,
        "reinforced": with_views(mixed),
    }
    removed = {
        "raw": pa.table(
            {"sample_id": ["f" * 32], "source": ["scans/blank 7.png"], "reason": ["truncated image (bytes missing after 1,204)"], "kind": ["rejected"]}
        ),
        "clean": removed_rows(train.filter(pa.array(twins)), lambda row: f"near duplicate of {hexed(str(row), 32)}, distance {row % 3}"),
        "core": removed_rows(rest, lambda row: "not a medoid of its class"),
        "agreed": removed_rows(drawn.filter(pa.array(doubted)), lambda row: f"teacher sees {row % 10}" if row % 4 else "teacher unsure"),
    }
    return SimpleNamespace(tables=tables, removed=removed)


@pytest.fixture
def build(digits_tables: SimpleNamespace) -> SimpleNamespace:
    """A whole build to render: `manifest` (free to change), `tables`, `removed` (functions of a stage's name)."""
    rows = {name: table.num_rows for name, table in digits_tables.tables.items()}
    gone = {name: table.num_rows for name, table in digits_tables.removed.items()}
    train = rows["clean"] + gone["clean"]
    stages = [
        stage("raw", "ingest.digits", "source", {}, rows["raw"], 0.9, rejected=1),
        stage("split", "table.split", "select", {"samples": "raw"}, rows["split"], 0.2, params={"validation": 0.2, "test": 0.2}),
        stage("clean", "filter.near_duplicates", "select", {"samples": "split.train"}, rows["clean"], 1.1, params={"max_distance": 2, "mode": "drop"}, dropped=gone["clean"]),
        stage("scores", "score.dynamics", "score", {"samples": "clean"}, rows["scores"], 9.4, params={"epochs": 20}),
        stage("core", "prune.k_medoids", "select", {"samples": "scores"}, rows["core"], 0.8, params={"keep": 0.1, "balance": "label"}, dropped=gone["core"]),
        stage("core--random", "prune.random", "select", {"samples": "clean"}, rows["core"], 0.2, hidden=True),
        stage("teacher", "train.teacher", "train", {"samples": "clean"}, 3, 13.3, gives="model"),
        stage("diffusion", "train.class_diffusion", "train", {"samples": "clean"}, 1, 81.0, gives="model"),
        stage("drawn", "generate.class_diffusion", "source", {"model": "diffusion"}, rows["drawn"], 4.1, params={"per_class": 60, "steps": 50}),
        stage("agreed", "filter.teacher_agreement", "row", {"samples": "drawn", "teacher": "teacher"}, rows["agreed"], 0.7, dropped=gone["agreed"]),
        stage("mixed", "table.mix", "select", {"core": "core", "drawn": "agreed"}, rows["mixed"], 0.1),
        stage("mixed--random", "table.mix", "select", {"core": "core--random", "drawn": "agreed"}, rows["mixed"], 0.1, hidden=True),
        stage("reinforced", "reinforce.teacher", "row", {"samples": "mixed", "teacher": "teacher", "check_on": "split.validation"}, rows["reinforced"], 6.0),
        stage("reinforced--random", "reinforce.teacher", "row", {"samples": "mixed--random", "teacher": "teacher"}, rows["reinforced"], 5.9, hidden=True),
        stage("proof--raw-hard", "train.student", "train", {"samples": "split.train", "tune": "split.validation"}, 5, 11.7, gives="model", hidden=True),
        stage("proof--candidate-stored", "train.student", "train", {"samples": "reinforced", "tune": "split.validation"}, 5, 12.0, gives="model", hidden=True),
        stage("proof--control-stored", "train.student", "train", {"samples": "reinforced--random", "tune": "split.validation"}, 5, 12.2, gives="model", hidden=True),
        stage("proof", "evaluate.student", "measure", {
            "test": "split.test", "raw.hard": "proof--raw-hard", "candidate.stored": "proof--candidate-stored", "control.stored": "proof--control-stored",
        }, 7, 1.5, gives="metrics"),
    ]  # fmt: skip
    gates = [
        ("schema: sample_id unique", "expect_column_values_to_be_unique", "sample_id"),
        ("schema: label between 0 and 9", "expect_column_values_to_be_between", "label"),
        ("leakage: no test id in train", "expect_column_values_to_be_in_set", "leaks"),
        ("rows: not empty", "expect_table_row_count_to_be_between", None),
    ]
    manifest = {
        "format": 1, "name": "digits", "number": 3, "created": "2026-11-25T04:30:00Z", "digest": hexed("digits@3"), "rows": rows["mixed"] + 719,
        "splits": {"train": rows["mixed"], "validation": 359, "test": 360},
        "table": {"name": "digits", "version": 3, "fingerprint": hexed("table"), "rows": rows["mixed"] + 719, "digest": hexed("t")},
        "recipe": {"text": RECIPE, "path": "quickstart.yaml", "overrides": []}, "seed": 7, "trial": False, "stages": stages,
        "environment": {"python": "3.11.7", "packages": {"torch": "2.14.1", "pyarrow": "26.0.1", "pylance": "14.0.2"}, "machine": "x86_64", "cores": 2, "device": "cpu"},
        "gates": [{"name": name, "expectation": expectation, "column": column, "ok": True, "rows": rows["mixed"], "failed": 0, "examples": []} for name, expectation, column in gates],
        "proof": copy.deepcopy(PROOF) | {"arms": [arm | {"rows": train if arm["arm"] == "raw.hard" else arm["rows"] if arm["rows"] == 108 else rows["mixed"]} for arm in copy.deepcopy(PROOF["arms"])]},
        "seconds": 180.2,
    }  # fmt: skip
    return SimpleNamespace(
        manifest=manifest,
        tables=lambda name: MemoryTable(digits_tables.tables[name]),
        removed=lambda name: MemoryTable(digits_tables.removed[name]),
    )
