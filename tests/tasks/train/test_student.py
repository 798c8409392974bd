"""train.student: tunes on `tune`, resumes, and starts every arm alike; stored arms see what the teacher saw."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from stillroom.draws import Draw
from stillroom.errors import InputError, StoreError
from stillroom.fields import image_field, label_field
from stillroom.images import encode_png
from stillroom.operators import Unit, Work
from stillroom.soft_labels import decode, encode, soft_label_type
from stillroom.tables import MemoryTable
from stillroom.views import ViewPolicy, draw_views, replay, view_contract, views_field
from tasks.nets.models import ids_seen
from tasks.train._arm import load_hard, load_stored, weighed
from tasks.train.student import StudentParams, student

POLICY = ViewPolicy(kinds=("identity", "affine"), shift_px=2)
PARAMS = {"net": "mlp:16", "steps": 30, "batch_size": 8, "learning_rates": [1e-5, 1e-2], "seeds": 3, "tune_seeds": 2}


def pictures(rows: int, seed: int = 0) -> np.ndarray:
    """Noise whose upper half is bright in even rows, and whose lower half is in odd ones; uint8 [N, 1, 6, 6]."""
    pixels = np.random.default_rng(seed).integers(0, 120, (rows, 1, 6, 6), np.uint8)
    pixels[0::2, :, :3] += 120
    pixels[1::2, :, 3:] += 120
    return pixels


def samples(rows: int, seed: int = 0) -> MemoryTable:
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(["upper", "lower"])])
    images = [encode_png(pixels.transpose(1, 2, 0)) for pixels in pictures(rows, seed)]
    return MemoryTable(pa.table([[f"{seed}-{row}" for row in range(rows)], images, [row % 2 for row in range(rows)]], schema=schema))


def reinforced(rows: int, views: int, flipped: bool = False) -> MemoryTable:
    """The same samples with stored views, and soft labels that a number of the view tells apart."""
    table = samples(rows)
    drawn = draw_views(POLICY, [str(row) for row in range(rows)], np.full((rows, 2), 6), Draw(0, "views"), views).values
    right = np.array([[row % 2 != flipped, 0.9 - view / 100] for row in range(rows) for view in range(views)])
    probs = np.where(right[:, :1] == [[0, 1]], right[:, 1:], 1 - right[:, 1:])
    labels = encode(probs, None)
    field = views_field(view_contract(POLICY), soft_label_type(2, None), {"num_classes": 2, "top_k": 2, "temperature": 1.0})
    structs = pa.StructArray.from_arrays([*drawn.flatten(), labels], fields=list(field.type.value_type))
    column = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1) * views, pa.int32()), structs)
    return MemoryTable(table.table.append_column(field, column))


def work(tmp_path, saved: dict | None = None) -> Work:
    return Work(device="cpu", threads=1, scratch=tmp_path, draw=Draw(0, "train.student"), saved={} if saved is None else saved)


def train(arm: MemoryTable, unit_work: Work, **params) -> list[dict]:
    inputs = {"samples": arm, "tune": samples(20, seed=1)}
    return [batch.to_pylist()[0] for batch in student(Unit("arm"), inputs, StudentParams(**PARAMS | params), unit_work)]


def test_takes_the_learning_rate_that_is_best_on_tune(tmp_path):
    rows = train(samples(24), work(tmp_path))
    metrics = [json.loads(row["metrics"]) for row in rows]
    assert [row["seed"] for row in rows] == [0, 1, 2]
    assert [one["learning_rate"] for one in metrics[0]["tried"]] == [1e-5, 1e-2]
    assert metrics[0]["tried"][0]["accuracy"] < metrics[0]["tried"][1]["accuracy"]
    assert {one["learning_rate"] for one in metrics} == {1e-2}
    assert all(one["validation_accuracy"] > 0.9 for one in metrics)
    assert json.loads(rows[0]["saw"]) == ids_seen([f"0-{row}" for row in range(24)])


def test_of_equal_accuracies_the_lower_cross_entropy_wins(tmp_path):
    metrics = json.loads(train(samples(24), work(tmp_path), learning_rates=[2e-2, 1e-1], steps=60)[0]["metrics"])
    slow, fast = metrics["tried"]
    assert slow["accuracy"] == fast["accuracy"] == 1
    assert metrics["learning_rate"] == min(metrics["tried"], key=lambda one: one["cross_entropy"])["learning_rate"]


def test_a_students_weights_do_not_depend_on_the_other_rates_tried(tmp_path):
    both = train(samples(24), work(tmp_path))
    alone = train(samples(24), work(tmp_path), learning_rates=[1e-2])
    assert [row["weights"] for row in both] == [row["weights"] for row in alone]


class Stopped(Exception):
    """The process is gone."""


def test_finished_students_are_kept_over_a_crash(tmp_path):
    whole = train(samples(24), work(tmp_path))
    saved: dict[str, bytes] = {}
    crashed = work(tmp_path, saved)

    def stop_in_the_fourth(done: float, total: float) -> None:
        if done > 100:
            raise Stopped

    crashed.report = stop_in_the_fourth
    with pytest.raises(Stopped):
        train(samples(24), crashed)
    assert len(saved) == 3
    before = dict(saved)
    assert train(samples(24), work(tmp_path, saved)) == whole
    assert {name: saved[name] for name in before} == before


def test_seeds_start_alike_in_every_arm(tmp_path):
    barely = {"steps": 1, "learning_rates": [1e-12], "tune_seeds": 1}
    hard, stored = train(samples(24), work(tmp_path), **barely), train(reinforced(24, 2), work(tmp_path), labels="stored", **barely)
    assert hard[0]["weights"] != hard[1]["weights"]
    from safetensors.numpy import load

    for one, other in zip(hard, stored, strict=True):
        first, second = load(one["weights"]), load(other["weights"])
        assert all(np.allclose(first[name], second[name], atol=1e-9) for name in first)


def test_a_hard_arm_gives_images_and_labels(tmp_path):
    arm = load_hard(samples(10), tmp_path, None, None)
    images, targets = arm.batches(10, "order", Draw(0, "train.student"))(0)
    order = targets.argsort(stable=True)
    assert sorted(image.tobytes() for image in images.numpy()) == sorted(image.tobytes() for image in pictures(10))
    assert targets[order].tolist() == [0] * 5 + [1] * 5


def test_a_stored_arm_replays_view_e_of_each_sample_in_epoch_e(tmp_path):
    table = reinforced(10, 3)
    arm = load_stored(table, tmp_path, None, None, epochs=9)
    batches = arm.batches(10, "order", Draw(0, "train.student"))
    structs = table.table["views"].combine_chunks().values
    for epoch in range(4):
        images, targets = batches(epoch)
        seen = structs.take(pa.array(np.arange(10) * 3 + epoch % 3))
        expected, labels = replay(pictures(10), seen, view_contract(POLICY)), decode(seen.field("soft_label"), 2)
        pairs = {(image.tobytes(), tuple(label)) for image, label in zip(expected, labels.tolist(), strict=True)}
        assert {(image.tobytes(), tuple(label)) for image, label in zip(images.numpy(), targets.tolist(), strict=True)} == pairs


def test_a_batch_over_two_epochs_takes_each_samples_view_of_its_epoch(tmp_path):
    arm = load_stored(reinforced(4, 2), tmp_path, None, None, epochs=9)
    _, targets = arm.batches(6, "order", Draw(0, "train.student"))(0)
    assert targets.max(1).values.tolist() == pytest.approx([0.9] * 4 + [0.89] * 2, abs=1e-3)


def test_only_views_that_are_used_are_replayed(tmp_path):
    assert load_stored(reinforced(4, 3), tmp_path, None, None, epochs=2).pixels_VNCSS.shape == (2, 4, 1, 6, 6)


def test_stored_labels_are_what_a_student_learns(tmp_path):
    rows = train(reinforced(24, 2, flipped=True), work(tmp_path), labels="stored", learning_rates=[1e-2])
    assert all(json.loads(row["metrics"])["validation_accuracy"] < 0.1 for row in rows)


def test_views_are_resized_to_the_side_asked_for(tmp_path):
    rows = train(reinforced(8, 1), work(tmp_path), labels="stored", side_px=4, channels=3)
    config = json.loads(rows[0]["config"])
    assert (config["side_px"], config["channels"]) == (4, 3)


def test_refuses_views_that_replay_otherwise(tmp_path):
    table = reinforced(4, 1).table
    field = table.schema.field("views")
    other = field.with_metadata({**field.metadata, b"stillroom.views_probe": b"0" * 64})
    with pytest.raises(StoreError, match="replays otherwise"):
        load_stored(MemoryTable(table.set_column(3, other, table["views"])), tmp_path, None, None, epochs=1)


def test_refuses_samples_of_which_none_has_views(tmp_path):
    table = reinforced(2, 1).table
    field = table.schema.field("views")
    holes = pa.chunked_array([pa.array([[], []], field.type)])
    with pytest.raises(InputError, match="views: none of 2 samples has one; reinforce.teacher or reinforce.views gives each some"):
        load_stored(MemoryTable(table.set_column(3, field, holes)), tmp_path, None, None, epochs=1)


@pytest.mark.parametrize(("params", "problem"), [({"tune_seeds": 6}, "tune_seeds: 6 is more than seeds: 5"), ({"learning_rates": [0.1, 0.1]}, "each once")])
def test_refuses_parameters_that_contradict_each_other(params, problem):
    with pytest.raises(ValueError, match=problem):
        StudentParams(**params)


def with_weights(table: MemoryTable, weights: list[float | None]) -> MemoryTable:
    return MemoryTable(table.table.append_column("weight", pa.array(weights, pa.float32())))


@pytest.mark.parametrize("stored", [False, True])
def test_a_weight_multiplies_the_loss_of_its_sample(tmp_path, stored):
    table = with_weights(reinforced(6, 2) if stored else samples(6), [1, 3, 0, 2, 2, 4])
    arm = load_stored(table, tmp_path, None, 1, 2) if stored else load_hard(table, tmp_path, None, 1)
    rows = np.array([1, 2, 5])
    plain, heavy = (torch.from_numpy(one.targets(np.zeros(3, int), rows)) for one in (arm, weighed(arm, table)))
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32))
    losses = torch.nn.functional.cross_entropy(logits, plain, reduction="none")
    # The weights' mean is 2.
    assert torch.allclose(torch.nn.functional.cross_entropy(logits, heavy, reduction="none"), losses * torch.tensor([1.5, 0.0, 2.0]))


def test_weights_count_only_when_asked_for_and_equal_ones_change_little(tmp_path):
    table = samples(20)
    plain = train(table, work(tmp_path))
    assert train(with_weights(table, [row % 3 for row in range(20)]), work(tmp_path)) == plain
    assert train(table, work(tmp_path), weighted=True) == plain
    assert train(with_weights(table, [row % 3 for row in range(20)]), work(tmp_path), weighted=True)[0]["weights"] != plain[0]["weights"]


@pytest.mark.parametrize("weights", [[1.0, None], [1.0, -1.0], [0.0, 0.0], [1.0, float("inf")]])
def test_refuses_weights_that_are_none(tmp_path, weights):
    with pytest.raises(InputError, match="weight: holds null, infinite or negative"):
        train(with_weights(samples(2), weights), work(tmp_path), weighted=True)
