"""train.teacher: it learns, its members differ, a killed run resumes to the same bits, and a floor holds."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from stillroom.draws import Draw
from stillroom.errors import InputError, StageError
from stillroom.fields import image_field, label_field
from stillroom.images import decode_batch, encode_png
from stillroom.operators import Work
from stillroom.soft_labels import decode
from stillroom.tables import MemoryTable
from tasks.nets.models import folds_of, ids_seen, load_classifiers, measured_on
from tasks.reinforce import teacher as reinforce
from tasks.train.teacher import TeacherParams, teacher

FAST = {"net": "mlp:32", "steps": 60, "batch_size": 32, "learning_rate": 0.01}


def digits(start: int, stop: int, names: list[str] | None = None) -> MemoryTable:
    from sklearn.datasets import load_digits

    pixels_NHW, labels = load_digits(return_X_y=True)
    names = names or [str(digit) for digit in range(10)]
    images = [encode_png((image.reshape(8, 8, 1) * 15).astype(np.uint8)) for image in pixels_NHW[start:stop]]
    numbers = [names.index(str(label)) for label in labels[start:stop]]
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(names)])
    return MemoryTable(pa.table([[f"d{row}" for row in range(start, stop)], images, numbers], schema=schema))


def work(scratch: Path, saved: dict | None = None) -> Work:
    torch.set_num_threads(1)  # as the engine does
    return Work(device="cpu", threads=1, scratch=scratch, draw=Draw(7, "train.teacher"), saved={} if saved is None else saved)


def trained(scratch: Path, inputs: dict[str, MemoryTable], saved: dict | None = None, **params) -> pa.RecordBatch:
    asked = TeacherParams(**FAST | params)
    batches = [batch for unit in teacher.units(inputs, asked) for batch in teacher(unit, inputs, asked, work(scratch, saved))]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def test_learns_and_keeps_what_it_measured(tmp_path):
    train, held_out = digits(0, 600), digits(600, 800)
    model = trained(tmp_path, {"samples": train, "check_on": held_out}, steps=200, floor="80%")
    metrics = json.loads(model["metrics"][0].as_py())
    assert metrics["validation_accuracy"] > 0.85
    assert metrics == measured_on(load_classifiers(MemoryTable(pa.Table.from_batches([model])), "cpu"), held_out, tmp_path, 256)
    assert json.loads(model["saw"][0].as_py()) == ids_seen([f"d{row}" for row in range(600)])
    assert json.loads(model["config"][0].as_py())["label_names"] == [str(digit) for digit in range(10)]


def test_images_that_a_timm_net_cannot_take_are_refused_by_one_line(tmp_path):
    with pytest.raises(InputError, match="net 'timm/vit_tiny_patch16_224': images of 8 px don't pass through it; timm made it for 224 px"):
        trained(tmp_path, {"samples": digits(0, 100)}, net="timm/vit_tiny_patch16_224", side_px=8)


def test_members_differ_and_each_is_the_same_again(tmp_path):
    train = digits(0, 100)
    two, again = trained(tmp_path, {"samples": train}, seeds=2), trained(tmp_path, {"samples": train}, seeds=2)
    assert two["seed"].to_pylist() == [0, 1]
    assert two["model_id"][0] != two["model_id"][1]
    assert two.equals(again)
    assert trained(tmp_path, {"samples": train}, seeds=1)["model_id"][0] == two["model_id"][0]


def test_with_folds_each_member_leaves_out_its_part(tmp_path):
    train = digits(0, 120)
    found = trained(tmp_path, {"samples": train}, folds=3, seeds=2)
    folds = folds_of(train.table["sample_id"].to_pylist(), 3, 7)
    members = load_classifiers(MemoryTable(pa.Table.from_batches([found])), "cpu")
    assert found["seed"].to_pylist() == [0, 0, 0, 1, 1, 1]
    assert len({member.model_id for member in members}) == 6
    for place, member in enumerate(members):
        ids = [f"d{row}" for row in range(120) if folds[row] != place % 3]
        assert member.saw == ids_seen(ids, {"fold": place % 3, "folds": 3, "seed": 7})
        rest = [row for row in range(120) if folds[row] == place % 3]
        assert member.unseen([f"d{row}" for row in range(120)]).tolist() == (folds == place % 3).tolist()
        left = MemoryTable(train.take(rest))
        measured = measured_on([member], left, tmp_path, 256)
        assert json.loads(found["metrics"][place].as_py()) == {"unseen_accuracy": measured["validation_accuracy"], "unseen_rows": len(rest)}


def test_a_label_has_no_part_in_the_model_that_judges_it(tmp_path):
    train = digits(0, 60)
    table = train.table
    labels = table["label"].to_pylist()
    labels[5] = (labels[5] + 1) % 10
    other = MemoryTable(table.set_column(2, table.schema.field("label"), pa.array(labels)))
    ids = [trained(tmp_path, {"samples": samples}, folds=3, steps=5)["model_id"].to_pylist() for samples in (train, other)]
    judge = int(folds_of(["d5"], 3, 7)[0])
    assert [before == after for before, after in zip(*ids, strict=True)] == [fold == judge for fold in range(3)]


def test_folds_without_names_of_classes_agree_on_them(tmp_path):
    train = digits(0, 60).table
    bare = MemoryTable(train.cast(pa.schema([field.remove_metadata() if field.name == "label" else field for field in train.schema])))
    rare = bare.table.set_column(2, bare.schema.field("label"), pa.array([3] + [row % 3 for row in range(59)]))  # class 3 is in one fold alone
    found = trained(tmp_path, {"samples": MemoryTable(rare)}, folds=2, steps=2)
    assert [json.loads(config)["label_names"] for config in found["config"].to_pylist()] == [["0", "1", "2", "3"]] * 2


def test_augmentation_is_part_of_what_is_trained(tmp_path):
    train = digits(0, 100)
    ids = {str(augment): trained(tmp_path, {"samples": train}, augment=augment)["model_id"][0].as_py() for augment in (None, {}, {"flip": True}, {"scale": 0})}
    assert len(set(ids.values())) == 4


def test_joint_labels_are_learnt_and_what_a_teacher_stores_is_their_aggregate(tmp_path):
    train, held_out = digits(0, 400), digits(600, 700)
    model = MemoryTable(pa.Table.from_batches([trained(tmp_path, {"samples": train, "check_on": held_out}, steps=150, joint="quarter_turns")]))
    (member,) = load_classifiers(model, "cpu")
    metrics = json.loads(model.table["metrics"][0].as_py())
    assert member.config["joint"] == "quarter_turns" and member.config["num_classes"] == 10
    assert metrics["validation_accuracy"] > 0.7 and metrics["single_accuracy"] > 0.7
    assert metrics["validation_accuracy"] == measured_on([member], held_out, tmp_path, 256)["validation_accuracy"]
    assert metrics["single_accuracy"] == measured_on([member.single()], held_out, tmp_path, 256)["validation_accuracy"]

    asked = reinforce.TeacherParams(views={"count": 1, "policy": ["identity"]}, batch=16)
    inputs, batch = {"samples": held_out, "teacher": model}, held_out.take(range(30)).combine_chunks().to_batches()[0]
    labelled = reinforce.teacher(batch, asked, reinforce.setup(inputs, asked, work(tmp_path)), Draw(7, "reinforce.teacher")).batch["views"].values
    pixels = decode_batch(batch["image"].to_pylist())
    with torch.inference_mode():
        turned = [torch.from_numpy(np.rot90(pixels, turns, axes=(2, 3)).copy()).float() / 255 for turns in range(4)]
        logits = [member.net((seen - member.config["mean"][0]) / member.config["std"][0])[:, turns::4] for turns, seen in enumerate(turned)]
    stored = decode(labelled.field("soft_label"), 10)
    assert stored == pytest.approx(torch.stack(logits).mean(0).softmax(1).numpy(), abs=1e-3)  # float16
    assert np.abs(stored - member.single().probs(pixels, 16)).max() > 0.01


def test_joint_labels_go_with_folds(tmp_path):
    found = trained(tmp_path, {"samples": digits(0, 60)}, folds=2, steps=2, joint="quarter_turns", augment=None)
    assert all(
        member.probs(np.zeros((1, 1, 8, 8), np.uint8), 4).shape == (1, 10) for member in load_classifiers(MemoryTable(pa.Table.from_batches([found])), "cpu")
    )
    assert json.loads(found["metrics"][0].as_py()).keys() == {"unseen_accuracy", "unseen_rows"}


@pytest.mark.parametrize(("channels", "found"), [(None, "1 channel"), (3, "3 channels that are alike")])
def test_grey_images_have_no_channels_to_permute(tmp_path, channels, found):
    with pytest.raises(StageError, match=f"^stage 'train.teacher': joint: permutation is for colour, and these images have {found}; take joint: quarter_turns"):
        trained(tmp_path, {"samples": digits(0, 20)}, joint="permutation", channels=channels)


def test_images_that_are_no_squares_can_not_be_turned(tmp_path):
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(["a"])])
    wide = MemoryTable(pa.table([["s"], [encode_png(np.zeros((8, 12, 1), np.uint8))], [0]], schema=schema))
    with pytest.raises(InputError, match="row 0 has 12x8 pixels, a square is needed; give side_px"):
        trained(tmp_path, {"samples": wide}, joint="quarter_turns")


def test_permuted_channels_are_learnt_too(tmp_path):
    numbers = np.random.default_rng(0)
    images = [encode_png(numbers.integers(0, 80, (8, 8, 3), np.uint8) + 120 * (np.arange(3) == row % 3).astype(np.uint8)) for row in range(90)]
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(["red", "green", "blue"])])
    table = MemoryTable(pa.table([[f"s{row}" for row in range(90)], images, [row % 3 for row in range(90)]], schema=schema))
    model = trained(tmp_path, {"samples": MemoryTable(table.take(range(60))), "check_on": MemoryTable(table.take(range(60, 90)))}, joint="permutation")
    (member,) = load_classifiers(MemoryTable(pa.Table.from_batches([model])), "cpu")
    assert member.net.head.out_features == 18
    assert {"validation_accuracy", "single_accuracy"} <= json.loads(model["metrics"][0].as_py()).keys()


def test_without_joint_labels_a_teacher_has_the_fingerprint_of_before():
    assert "joint" not in TeacherParams().model_dump(mode="json")
    assert TeacherParams(joint="permutation").model_dump(mode="json")["joint"] == "permutation"


def test_validation_labels_are_matched_by_name(tmp_path):
    train, names = digits(0, 300), [str(digit) for digit in (3, 1, 4, 5, 9, 2, 6, 8, 7, 0)]
    own = trained(tmp_path, {"samples": train, "check_on": digits(300, 400)})
    turned = trained(tmp_path, {"samples": train, "check_on": digits(300, 400, names)})
    assert own["metrics"] == turned["metrics"]


def test_a_member_below_the_floor_is_refused(tmp_path):
    with pytest.raises(StageError, match=r"^stage 'train.teacher': accuracy 0\.\d{4} on 100 validation rows is below the floor of 0.99; "):
        trained(tmp_path, {"samples": digits(0, 100), "check_on": digits(100, 200)}, steps=2, floor=0.99)


def test_a_floor_needs_rows_to_measure_on(tmp_path):
    with pytest.raises(StageError, match=r"floor: 0.9 needs rows to measure on; give `check_on` a validation split$"):
        trained(tmp_path, {"samples": digits(0, 100)}, floor=0.9)


def test_channels_are_one_or_three():
    with pytest.raises(ValidationError, match="channels"):
        TeacherParams(channels=2)


class Folder(dict):
    """Checkpoints as files, so that they outlive a process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __setitem__(self, name: str, value: bytes) -> None:
        (self.path / name).write_bytes(value)

    def get(self, name: str, default: bytes | None = None) -> bytes | None:
        return (self.path / name).read_bytes() if (self.path / name).exists() else default


def killed_in_step(tmp_path: Path, joint: str | None) -> None:
    """Train until the second report after a checkpoint, then die by SIGKILL: run by a child process."""
    dying = work(tmp_path, Folder(tmp_path / "kept"))
    dying.report = lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == 240 else None
    params = TeacherParams(**FAST | {"steps": 300, "joint": joint})
    inputs = {"samples": digits(0, 100)}
    list(teacher(teacher.units(inputs, params)[0], inputs, params, dying))


@pytest.mark.parametrize("joint", [None, "quarter_turns"])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, joint):
    (tmp_path / "kept").mkdir()
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import pathlib, test_teacher; test_teacher.killed_in_step(pathlib.Path({str(tmp_path)!r}), {joint!r})"
    child = subprocess.run([sys.executable, "-c", code], timeout=120)
    assert child.returncode == -signal.SIGKILL
    kept = Folder(tmp_path / "kept")
    assert os.listdir(tmp_path / "kept") == ["fit"]
    train = digits(0, 100)
    reported: list[float] = []
    resumed_work = work(tmp_path, kept)
    resumed_work.report = lambda done, total: reported.append(done)
    params = TeacherParams(**FAST | {"steps": 300, "joint": joint})
    (resumed,) = teacher(teacher.units({"samples": train}, params)[0], {"samples": train}, params, resumed_work)
    assert reported == [220, 240, 260, 280, 300]
    assert resumed.equals(trained(tmp_path, {"samples": train}, steps=300, joint=joint))
