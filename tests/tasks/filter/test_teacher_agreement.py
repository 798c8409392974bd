"""filter.teacher_agreement with a teacher that reads its classes off two pixels."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.fields import image_field, label_field, label_names
from stillroom.images import encode_png
from stillroom.operators import Rows, Work
from stillroom.tables import MemoryTable
from tasks.filter.teacher_agreement import TeacherAgreementParams, teacher_agreement
from tasks.nets.models import folds_of, model_batch, model_row
from tasks.nets.zoo import build

CONFIG = {"task": "classify", "net": "mlp:2", "channels": 1, "side_px": 2, "num_classes": 2, "label_names": ["left", "right"], "mean": [0.0], "std": [1.0]}


def teacher(gain: float = 1.0) -> MemoryTable:
    """Logits of 2 `gain` times the upper left and the upper right pixel."""
    import torch

    with torch.random.fork_rng(), torch.no_grad():
        net = build("mlp:2", num_classes=2, channels=1, side_px=2)
        for parameter in net.parameters():
            parameter.zero_()
        net.body[0].weight[0, 0] = net.body[0].weight[1, 1] = 1
        net.body[2].weight[0, 0] = net.body[2].weight[1, 1] = 1
        net.head.weight[0, 0] = net.head.weight[1, 1] = 2 * gain
    return MemoryTable(pa.Table.from_batches([model_batch([model_row(net, CONFIG, 0, {}, "none")])]))


def picture(left: int, right: int) -> bytes:
    return encode_png(np.array([[[left], [right]], [[0], [0]]], np.uint8))


def samples(*rows: tuple[bytes, int, bool], names: tuple[str, ...] = ("left", "right")) -> pa.RecordBatch:
    images, labels, synthetic = zip(*rows, strict=True)
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(names), pa.field("synthetic", pa.bool_())])
    return pa.record_batch([[str(row) for row in range(len(rows))], images, labels, synthetic], schema=schema)


def judge(rows: pa.RecordBatch, tmp_path, models: MemoryTable | None = None, **params) -> Rows:
    settings = TeacherAgreementParams(**params)
    inputs = {"samples": MemoryTable(pa.Table.from_batches([rows])), "teacher": models or teacher()}
    state = teacher_agreement.setup(inputs, settings, Work(device="cpu", threads=1, scratch=tmp_path, draw=Draw(0, "filter.teacher_agreement")))
    return teacher_agreement(rows, settings, state)


def test_drops_what_the_teacher_takes_for_another_class(tmp_path):
    rows = judge(samples((picture(255, 0), 0, True), (picture(255, 0), 1, True)), tmp_path)
    assert rows.dropped.to_pylist() == [None, "teacher sees 'left', not 'right'"]
    assert rows.batch["teacher_label"].to_pylist() == [0, 0]


def test_unseen_a_sample_is_judged_by_the_model_that_left_it_out(tmp_path):
    # The second model sees left for right: its fold's rows are dropped.
    rows = [
        one.table.to_pylist()[0] | {"saw": json.dumps({"left_out": {"fold": fold, "folds": 2, "seed": 1}})}
        for fold, one in enumerate((teacher(), teacher(-1.0)))
    ]
    models = MemoryTable(pa.Table.from_batches([model_batch(rows)]))
    batch = samples(*[(picture(255, 0), 0, True)] * 12)
    found = judge(batch, tmp_path, models, judge="unseen")
    folds = folds_of([str(row) for row in range(12)], 2, 1).tolist()
    assert [reason is None for reason in found.dropped.to_pylist()] == [fold == 0 for fold in folds] and 0 < sum(folds) < 12
    with pytest.raises(InputError, match="sample '[0-9]+': was seen by each of 1 models, or may have been"):
        judge(batch, tmp_path, MemoryTable(models.table.slice(0, 1)), judge="unseen")


def test_the_probability_is_that_of_the_label(tmp_path):
    rows = judge(samples((picture(255, 0), 0, True), (picture(255, 0), 1, True)), tmp_path)
    sure = math.exp(2) / (math.exp(2) + 1)
    assert rows.batch["teacher_probability"].to_pylist() == pytest.approx([sure, 1 - sure], abs=1e-6)


def test_drops_what_the_teacher_is_too_unsure_of(tmp_path):
    rows = judge(samples((picture(255, 0), 0, True), (picture(128, 0), 0, True)), tmp_path, min_probability=0.8)
    assert rows.dropped.to_pylist() == [None, "teacher's probability of 'left' below 0.8"]


def test_real_rows_can_be_spared(tmp_path):
    rows = judge(samples((picture(255, 0), 1, False), (picture(255, 0), 1, True)), tmp_path, only_synthetic=True)
    assert rows.dropped.to_pylist() == [None, "teacher sees 'left', not 'right'"]
    assert rows.batch["teacher_label"].to_pylist() == [None, 0]


def test_a_broken_image_is_a_fault(tmp_path):
    rows = judge(samples((b"no picture", 0, True), (picture(255, 0), 0, True)), tmp_path)
    assert rows.rejected.to_pylist() == ["not an image (jpeg, png, gif, bmp, tiff, webp or ppm expected)", None]
    assert rows.batch["teacher_label"].to_pylist() == [None, 0]


def test_several_models_are_averaged_after_the_softmax(tmp_path):
    both = MemoryTable(pa.concat_tables([teacher(1.0).table, teacher(-3.0).table]))
    rows = judge(samples((picture(255, 0), 0, True)), tmp_path, models=both)
    first, second = (1 / (1 + math.exp(-2 * gain)) for gain in (1.0, -3.0))
    assert rows.batch["teacher_probability"].to_pylist() == pytest.approx([(first + second) / 2], abs=1e-6)


def test_no_row_depends_on_the_batch_it_comes_in(tmp_path):
    generator = np.random.default_rng(0)
    rows = [(picture(*generator.integers(0, 256, 2)), int(generator.integers(2)), True) for _ in range(11)]
    whole = judge(samples(*rows), tmp_path, batch=4)
    for place, one in enumerate(rows):
        alone = judge(samples(one), tmp_path, batch=4)
        assert alone.batch["teacher_probability"][0] == whole.batch["teacher_probability"][place]
        assert alone.dropped[0] == whole.dropped[place]


def test_images_may_differ_in_size(tmp_path):
    large = encode_png(np.full((4, 4, 1), 255, np.uint8))
    rows = judge(samples((large, 0, True), (picture(255, 0), 0, True)), tmp_path)
    assert rows.batch["teacher_probability"].to_pylist()[0] == pytest.approx(0.5)


def test_classes_are_matched_by_name(tmp_path):
    rows = judge(samples((picture(255, 0), 1, True), names=("right", "left")), tmp_path)
    assert rows.dropped.to_pylist() == [None]


def test_a_class_that_the_teacher_lacks_is_named(tmp_path):
    with pytest.raises(InputError, match="has no class 'up'"):
        judge(samples((picture(255, 0), 0, True), names=("left", "right", "up")), tmp_path)


def test_the_teachers_label_has_the_samples_names():
    schemas = {"samples": pa.schema([label_field(["a", "b"])])}
    added = teacher_agreement.added(TeacherAgreementParams(), schemas)
    assert label_names(pa.schema([added["teacher_label"]]), "teacher_label") == ["a", "b"]
