"""evaluate.student: what it counts, which arms it compares, and how it pairs them."""

import json
import math

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.fields import image_field, label_field, with_meaning
from stillroom.images import encode_png
from stillroom.operators import Work
from stillroom.tables import MemoryTable
from tasks.evaluate.student import StudentParams, student
from tasks.nets.models import model_batch, model_row
from tasks.nets.zoo import build
from tasks.statistics import mean_interval

CONFIG = {"task": "classify", "net": "mlp:2", "channels": 1, "side_px": 2, "num_classes": 2, "label_names": ["dark", "light"], "mean": [0.0], "std": [1.0]}


def reader(threshold: float, seed: int, learning_rate: float = 0.01) -> dict:
    """A student that calls an image light when its first pixel (0 to 1) is above the threshold."""
    import torch

    with torch.random.fork_rng(), torch.no_grad():
        net = build("mlp:2", num_classes=2, channels=1, side_px=2)
        for parameter in net.parameters():
            parameter.zero_()
        net.body[0].weight[0, 0] = net.body[2].weight[0, 0] = 1
        net.head.weight[1, 0] = 4
        net.head.bias[1] = -4 * threshold
    return model_row(net, CONFIG, seed, {"learning_rate": learning_rate}, {"rows": 7, "ids_digest": ""})


def arm(*rows: dict) -> MemoryTable:
    return MemoryTable(pa.Table.from_batches([model_batch(rows)]))


def split(*rows: tuple[int, int], names: tuple[str, ...] = ("dark", "light")) -> MemoryTable:
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(names)])
    images = [encode_png(np.full((2, 2, 1), brightness, np.uint8)) for brightness, _ in rows]
    return MemoryTable(pa.table([[str(row) for row in range(len(rows))], images, [label for _, label in rows]], schema=schema))


def judge(tmp_path, test: MemoryTable, **arms: MemoryTable) -> pl.DataFrame:
    inputs = {"test": test, **{name.replace("__", "."): table for name, table in arms.items()}}
    params = StudentParams(batch=4)
    tables = []
    for number, unit in enumerate(student.units(inputs, params)):
        scratch = tmp_path / str(number)
        scratch.mkdir(parents=True)
        tables.append(pa.Table.from_batches(student(unit, inputs, params, Work(device="cpu", threads=1, scratch=scratch, draw=Draw(0, "evaluate.student")))))
    found = student.finish(tables, inputs)
    declared = pa.schema([with_meaning(name, kind) for name, kind in student.added(params, {}).items()])
    assert found.schema.equals(declared)
    return pl.DataFrame(found)


FOUR = split((0, 0), (102, 0), (153, 1), (255, 1))


def test_an_arm_is_the_mean_of_its_students(tmp_path):
    found = judge(tmp_path, FOUR, raw__hard=arm(reader(0.5, 0), reader(0.3, 1, 0.01)))
    (line,) = found.filter(kind="arm").to_dicts()
    right = np.array([[1, 1, 1, 1], [1, 0, 1, 1]])
    assert (line["accuracy"], line["low"], line["high"]) == pytest.approx(mean_interval(right))
    assert (line["rows"], line["test_rows"], line["seeds"], line["learning_rate"]) == (7, 4, 2, 0.01)
    assert found.filter(kind="seed").select("seed", "accuracy").rows() == [(0, 1.0), (1, 0.75)]


def test_nll_and_ece_match_a_hand_sum(tmp_path):
    found = judge(tmp_path, split((0, 0), (255, 1)), raw__hard=arm(reader(0.5, 0)))
    sure = 1 / (1 + math.exp(-2))
    (line,) = found.filter(kind="arm").to_dicts()
    assert (line["nll"], line["ece"]) == pytest.approx((-math.log(sure), 1 - sure), abs=1e-6)


def test_each_class_has_its_accuracy(tmp_path):
    found = judge(tmp_path, FOUR, raw__hard=arm(reader(0.3, 0)))
    assert found.filter(kind="class").select("label_name", "test_rows", "accuracy").rows() == [("dark", 2, 0.5), ("light", 2, 1.0)]


def test_differences_are_paired_by_seed_and_by_test_row(tmp_path):
    found = judge(tmp_path, FOUR, raw__hard=arm(reader(0.3, 0), reader(0.7, 1)), candidate__hard=arm(reader(0.5, 0), reader(0.7, 1)))
    (line,) = found.filter(kind="difference").to_dicts()
    gained = np.array([[0, 1, 0, 0], [0, 0, 0, 0]])
    assert (line["arm"], line["against"]) == ("candidate.hard", "raw.hard")
    assert (line["gain"], line["low"], line["high"]) == pytest.approx(mean_interval(gained, -1, 1))


def test_compares_the_candidate_under_equal_labels_and_with_its_own_hard_ones(tmp_path):
    names = ["raw__hard", "candidate__hard", "candidate__stored", "control__hard", "control__stored", "without_made__stored"]
    found = judge(tmp_path, FOUR, **{name: arm(reader(0.5, 0)) for name in names})
    assert found.filter(kind="difference").select("arm", "against").rows() == [
        ("candidate.hard", "control.hard"),
        ("candidate.hard", "raw.hard"),
        ("candidate.stored", "control.stored"),
        ("candidate.stored", "raw.hard"),
        ("candidate.stored", "without_made.stored"),
        ("candidate.stored", "candidate.hard"),
    ]


def test_students_of_other_seeds_are_not_paired(tmp_path):
    with pytest.raises(InputError, match=r"have students of other seeds: \[1\] and \[0\]"):
        judge(tmp_path, FOUR, raw__hard=arm(reader(0.5, 0)), candidate__hard=arm(reader(0.5, 1)))


def test_answers_are_matched_to_the_test_splits_classes_by_name(tmp_path):
    swapped = split((0, 1), (255, 0), names=("light", "dark"))
    assert judge(tmp_path, swapped, raw__hard=arm(reader(0.5, 0))).filter(kind="arm")["accuracy"].to_list() == [1.0]


def test_a_class_that_the_students_never_heard_of_is_named(tmp_path):
    with pytest.raises(InputError, match="has no class 'grey'"):
        judge(tmp_path, split((0, 0), names=("dark", "light", "grey")), raw__hard=arm(reader(0.5, 0)))


def test_the_saw_of_a_model_from_outside_leaves_rows_open(tmp_path):
    row = reader(0.5, 0) | {"saw": json.dumps("unknown")}
    assert judge(tmp_path, FOUR, raw__hard=arm(row)).filter(kind="arm")["rows"].to_list() == [None]
