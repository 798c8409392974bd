"""reinforce.hard_views against a search by hand: which candidates are hard, which qualify, and what stands in where none does."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from flows.plan import make_plan
from stillroom.datasets import TorchSplit
from stillroom.errors import InputError, StageError
from stillroom.images import decode_batch
from stillroom.operators import Draw, Work
from stillroom.soft_labels import decode
from stillroom.stores import Store
from stillroom.tables import MemoryTable
from stillroom.views import ViewPolicy, check_contract, draw_views, identity_views, label_of, replay
from tasks.nets.models import load_classifiers, model_batch
from tasks.reinforce.hard_views import HardViewsParams, adds, divergence, hard_views, setup
from tests.tasks.reinforce.test_teacher import models, samples

DRAW = Draw(7, "reinforce.hard_views")
POLICY = {"policy": ["crop", "flip"], "crop_scale": [0.2, 0.9]}


def student(seeds: int = 1) -> MemoryTable:
    """Other untrained nets than the teacher's."""
    return MemoryTable(models(2 + seeds).table.slice(2))


def asked(**params: object) -> HardViewsParams:
    return HardViewsParams(**{"views": {"count": 3, **POLICY}, "candidates": 9, "min_confidence": 0.3, "batch": 16} | params)


def run(table: MemoryTable, params: HardViewsParams, part: slice = slice(None), teacher: MemoryTable | None = None) -> pa.RecordBatch:
    inputs = {"samples": table, "teacher": teacher or models(), "student": student()}
    batch = table.take(range(table.rows)[part]).combine_chunks().to_batches()[0]
    rows = hard_views(batch, params, setup(inputs, params, Work(device="cpu", threads=1, scratch=None, draw=DRAW)), DRAW)
    assert rows.dropped is None and rows.rejected is None
    return rows.batch


def test_the_views_stored_are_the_hardest_of_those_that_the_teacher_knows():
    table, params = samples(30), asked(min_confidence=0.375)
    found = run(table, params)
    images = np.repeat(decode_batch(table.table["image"].to_pylist()), 9, axis=0)
    drawn = draw_views(ViewPolicy(kinds=("crop", "flip"), crop_scale=(0.2, 0.9)), [f"s{row}" for row in range(30)], np.full((30, 2), 8), DRAW, 9)
    seen = replay(images, drawn.values, {"kernel": 1, "side_px": None})
    p = np.mean([member.probs(seen, 16) for member in load_classifiers(models(), "cpu")], axis=0).reshape(30, 9, 3)
    q = np.mean([member.probs(seen, 16) for member in load_classifiers(student(), "cpu")], axis=0).reshape(30, 9, 3)
    counts = []
    for row, candidates in enumerate(drawn.to_pylist()):
        known = [view for view in range(9) if p[row, view, row % 3] >= 0.375]
        hardest = sorted(known, key=lambda view: -sum(p[row, view, k] * np.log(p[row, view, k] / q[row, view, k]) for k in range(3)))[:3]
        counts.append(len(hardest))
        views = found["views"][row].as_py()
        labels = [view.pop("soft_label") for view in views]
        if hardest:
            assert views == [candidates[view] for view in hardest]
            assert np.array(labels) == pytest.approx(p[row, hardest], abs=1e-3)
        else:
            (whole,) = identity_views(np.array([[8, 8]])).to_pylist()
            assert views == [whole]
    assert found["hard_views"].to_pylist() == counts
    assert set(counts) == {0, 1, 2, 3}  # every case is met


def test_where_nothing_qualifies_the_plain_view_has_the_teachers_label():
    table = samples(6)
    found = run(table, asked(min_confidence=1.0))
    assert found["hard_views"].to_pylist() == [0] * 6
    plain = np.mean([member.probs(decode_batch(table.table["image"].to_pylist()), 16) for member in load_classifiers(models(), "cpu")], axis=0)
    assert decode(found["views"].flatten().field("soft_label"), 3) == pytest.approx(plain, abs=5e-4)


def test_a_confidence_that_is_hit_exactly_qualifies():
    # Logits of 0 for two of three classes and of minus infinity for the third: probabilities of exactly one half.
    table, rows = samples(2), models(1).table.to_pylist()
    from safetensors.torch import load, save

    weights = {name: torch.zeros_like(tensor) for name, tensor in load(rows[0]["weights"]).items()}
    weights["head.bias"] = torch.tensor([0.0, 0.0, -200.0])
    even = MemoryTable(pa.Table.from_batches([model_batch([rows[0] | {"weights": save(weights)}])]))
    for least, hard in ((0.5, 3), (0.5000001, 0)):
        assert run(table, asked(min_confidence=least), teacher=even)["hard_views"].to_pylist() == [hard, hard]


def test_the_divergence_is_kl_and_stays_finite():
    p, q = np.array([[0.5, 0.25, 0.25], [1, 0, 0], [0.5, 0.5, 0]], np.float32), np.array([[0.25, 0.25, 0.5], [1, 0, 0], [0, 1, 0]], np.float32)
    by_torch = torch.nn.functional.kl_div(torch.tensor(q).log(), torch.tensor(p), reduction="none").sum(1)
    assert divergence(p, q)[:2] == pytest.approx([by_torch[0].item(), 0.0], abs=1e-6)
    assert divergence(p, q)[2] == pytest.approx(0.5 * np.log(0.5 / 1e-12) + 0.5 * np.log(0.5), rel=1e-6)


@settings(max_examples=6)
@given(st.integers(1, 11), st.sampled_from([4, 16, 64]))
def test_a_row_does_not_depend_on_its_batch(cut, batch):
    table, params = samples(), asked(batch=batch)
    parts = [run(table, params, part) for part in (slice(cut), slice(cut, None))]
    whole = run(table, params)
    for name in ("views", "hard_views"):
        assert [value for part in parts for value in part[name].to_pylist()] == whole[name].to_pylist()


def test_the_written_column_is_the_declared_one_and_a_trainer_reads_it():
    table, params = samples(), asked(views={"count": 2, **POLICY, "side_px": 6})
    found, declared = run(table, params), adds(params, {"samples": table.schema})
    assert found["views"].type == declared["views"].type
    assert check_contract(declared["views"])["side_px"] == 6 and label_of(declared["views"]) == {
        "num_classes": 3,
        "top_k": 10,
        "temperature": 1.0,
        "varies": True,
    }
    split = TorchSplit(
        MemoryTable(pa.Table.from_batches([found]).cast(pa.schema([*table.schema, declared["views"], pa.field("hard_views", pa.int32())]))), views="stored"
    )
    assert {tuple(item["image"].shape) for item in split.__getitems__(list(range(12)))} == {(1, 6, 6)}


def test_members_that_saw_a_sample_can_be_left_out():
    rows = [row | {"saw": json.dumps("unknown")} if row["seed"] else row for row in models().table.to_pylist()]
    mixed = MemoryTable(pa.Table.from_batches([model_batch(rows)]))
    table, alone = samples(), MemoryTable(models().table.slice(0, 1))
    unseen = run(table, asked(judge="unseen"), teacher=mixed)
    assert unseen["views"].to_pylist() == run(table, asked(), teacher=alone)["views"].to_pylist() != run(table, asked(), teacher=mixed)["views"].to_pylist()
    with pytest.raises(InputError, match="sample 's0': was seen by each of 1 models"):
        run(table, asked(judge="unseen"), teacher=MemoryTable(mixed.table.slice(1)))


RECIPE = """name: hard
stages:
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
  teacher: {op: train.teacher, from: split.train}
  small: {op: train.teacher, from: split.train, net: "cnn:4"}
  smaller: {op: train.teacher, from: split.train, net: "cnn:2"}
  hard: {op: reinforce.hard_views, from: {samples: split.train, teacher: teacher, student: small}}
  other: {op: reinforce.hard_views, from: {samples: split.train, teacher: teacher, student: smaller}}
"""


def test_views_of_another_student_are_another_stage(recipe, store: Store):
    prints = {stage.name: stage.prints for stage in make_plan(recipe(RECIPE + "publish: {splits: {train: hard}}\n"), store).stages}
    assert prints["hard"].table != prints["other"].table


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"candidates": 2}, "candidates: 2 are fewer than the 3 views to be stored"),
        ({"views": {"count": 1, "policy": ["identity"]}}, "leaves nothing to choose from"),
        ({"min_confidence": 1.1}, "less than or equal to 1"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(wrong, said):
    with pytest.raises(ValidationError, match=said):
        asked(**wrong)


def test_a_row_without_a_label_is_named():
    table = samples(3).table
    holes = MemoryTable(table.set_column(2, table.schema.field("label"), pa.array([0, None, 2])))
    with pytest.raises(StageError, match="sample 's1' has no label"):
        run(holes, asked())
