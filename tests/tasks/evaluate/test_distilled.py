"""evaluate.distilled: which arms it trains, on what, by which recipe, and what comes of their answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.fields import image_field, label_field, vector_field, with_meaning
from stillroom.images import encode_png
from stillroom.operators import Unit, Work
from stillroom.tables import MemoryTable
from tasks.evaluate._small_sets import chosen, load_set, told_by
from tasks.evaluate.distilled import DistilledParams, distilled
from tasks.nets.models import model_batch, model_row
from tasks.nets.training import seeded_net

NAMES = ("across", "down", "slanted")
QUICK = {"nets": ("convnet3:4",), "seeds": 2, "epochs": 6, "real_epochs": 2, "augment": ("shift", "scale")}
TOLD = {"mean": [0.5], "std": [0.25], "learning_rate": 0.05, "augment": ["shift"], "labels": "hard", "net": "convnet3:4"}
PLAIN = TOLD | {"augment": [], "learning_rate": 0.1}
LEARNING = QUICK | {"protocol": "table", "nets": ("convnet3:16",), "epochs": 40, "real_epochs": 0, "robustness": False}
DRAW = Draw(3, "evaluate.distilled")


def picture(label: int, number: int) -> np.ndarray:
    """Stripes in one of three directions, under noise."""
    y, x = np.indices((8, 8))
    stripes = (y, x, x + y)[label] // 2 % 2 * 120.0 + 60
    return np.clip(stripes + np.random.default_rng([label, number]).normal(0, 25, (8, 8)), 0, 255).astype(np.uint8)[..., None]


def samples(per_class: int, first: int = 0, names: tuple[str, ...] = NAMES, **columns: Any) -> MemoryTable:
    """Samples of each class; further columns are (field, values)."""
    rows = [(label, number) for number in range(first, first + per_class) for label in range(3)]
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(names), *(field for field, _ in columns.values())])
    values = [[f"{label}-{number:03}" for label, number in rows], [encode_png(picture(*row)) for row in rows], [label for label, _ in rows]]
    return MemoryTable(pa.table([*values, *(given for _, given in columns.values())], schema=schema))


def shuffled(table: MemoryTable) -> MemoryTable:
    return MemoryTable(table.table.take(pa.array(np.random.default_rng(5).permutation(table.rows))))


def exact(table: MemoryTable) -> np.ndarray:
    return ((table.torch(["image"])["image"].numpy() / 255 - 0.5) / 0.25).astype(np.float32).reshape(table.rows, -1)


def synthetic(per_class: int = 1, soft: list[list[float]] | None = None, training: dict[str, Any] = TOLD, **more: Any) -> MemoryTable:
    """A set as distillation leaves one."""
    pixels = exact(samples(per_class))
    columns = {"pixels": (vector_field("pixels", 64), list(pixels)), "training": (pa.field("training", pa.string()), [json.dumps(training)] * len(pixels))}
    columns |= {"soft_label": (pa.field("soft_label", pa.list_(pa.float32(), 3)), soft)} if soft else {}
    return samples(per_class, **columns, **more)


REAL, TEST, TUNE = samples(12), samples(6, first=50), samples(4, first=80)


class Kept(dict):
    """Checkpoints, as an engine that dies after so many nets finds them again."""

    left = 10**6

    def __setitem__(self, name: str, value: bytes) -> None:
        super().__setitem__(name, value)
        if name.endswith("-answers"):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def run(tmp_path: Path, units: list[Unit], inputs: dict[str, Any], params: DistilledParams, saved: Any = None) -> list[pa.Table]:
    import torch

    torch.set_num_threads(1)  # as the engine does
    tables = []
    for unit in units:
        scratch = tmp_path / f"{unit.name}-{len(list(tmp_path.iterdir()))}"
        scratch.mkdir()
        work = Work(device="cpu", threads=1, scratch=scratch, draw=DRAW, saved={} if saved is None else saved)
        tables.append(pa.Table.from_batches(distilled(unit, inputs, params, work)))
    return tables


def judge(tmp_path: Path, inputs: dict[str, Any], **params: Any) -> pl.DataFrame:
    checked, inputs = DistilledParams(**QUICK | params), {"real": REAL, "test": TEST} | inputs
    tables = run(tmp_path, distilled.units(inputs, checked), inputs, checked)
    found = distilled.finish(tables, checked)
    assert found.schema.equals(pa.schema([with_meaning(name, kind) for name, kind in distilled.added(checked, {}).items()]))
    return pl.DataFrame(found)


def test_each_set_stands_beside_as_many_real_samples_and_all_of_them(tmp_path):
    found = judge(tmp_path, {"mine": samples(2)}, nets=("convnet3:4", "mlp:4"))
    arms = found.filter(kind="arm", main=True).select("net", "arm", "rows").rows()
    equal = [("candidate", 6), ("random", 6), ("herding", 6), ("k_medoids", 6)]
    assert arms == [*(("convnet3:4", *arm) for arm in equal), ("convnet3:4", "real", 36), *(("mlp:4", *arm) for arm in equal)]
    assert found.filter(kind="ranking").select("net", "metric").rows() == [
        *(("convnet3:4", metric) for metric in ("IOR", "HLR", "LRS", "ARS")),
        ("mlp:4", "IOR"),
    ]
    gains = dict(found.filter(kind="difference", net="mlp:4").select("against", "gain").iter_rows())
    accuracy = dict(found.filter(kind="arm", net="mlp:4").select("arm", "accuracy").iter_rows())
    assert gains == pytest.approx({f"{arm}.hard": accuracy["candidate"] - accuracy[arm] for arm in ("random", "herding", "k_medoids")})


def test_all_real_samples_get_as_many_steps_as_the_set_at_least(tmp_path):
    """Six passes are six steps for a set of three, and for 36 real samples too."""
    real = [judge(tmp_path, {"mine": samples(1)}, real_epochs=epochs, robustness=False).filter(arm="real") for epochs in (1, 6, 40)]
    assert real[0].equals(real[1]) and not real[0].equals(real[2])


def test_soft_labels_that_are_one_hot_give_the_hard_answers_bit_for_bit(tmp_path):
    params = DistilledParams(**LEARNING)
    inputs = {"real": REAL, "test": TEST, "mine": synthetic(soft=np.eye(3).tolist(), training=PLAIN)}
    (answers,) = run(tmp_path, distilled.units(inputs, params)[:1], inputs, params)
    by_labels = {labels: answers.filter(pc.equal(answers["labels"], labels))["correct"].to_pylist() for labels in ("soft", "hard")}
    assert by_labels["soft"] == by_labels["hard"]
    assert len(by_labels["hard"]) == 2 and np.mean(by_labels["hard"]) > 0.5


def test_soft_labels_are_learnt_from(tmp_path):
    wrong = np.eye(3)[[1, 2, 0]].tolist()
    found = judge(tmp_path, {"mine": synthetic(soft=wrong, training=PLAIN)}, **LEARNING).filter(kind="arm", arm="candidate")
    accuracy = dict(found.select("labels", "accuracy").iter_rows())
    assert accuracy["soft"] < 0.2 < 0.6 < accuracy["hard"]


def test_with_a_teacher_real_samples_get_soft_labels_too(tmp_path):
    net = seeded_net("mlp:4", "teacher", DRAW, num_classes=3, channels=1, side_px=8)
    config = {"task": "classify", "net": "mlp:4", "channels": 1, "side_px": 8, "num_classes": 3, "label_names": list(NAMES), "mean": [0.5], "std": [0.25]}
    teacher = MemoryTable(pa.Table.from_batches([model_batch([model_row(net, config, 0, {}, "none")])]))
    inputs = {"mine": synthetic(soft=np.full((3, 3), 1 / 3).tolist())}
    assert set(judge(tmp_path, inputs).filter(kind="difference", labels="soft", main=True)["against"]) == {
        "candidate_8_bit.soft", "random.hard", "herding.hard", "k_medoids.hard", "real.hard",
    }  # fmt: skip
    assert "random.soft" in set(judge(tmp_path, inputs | {"teacher": teacher}).filter(kind="difference", labels="soft")["against"])


def test_the_table_protocol_takes_rate_and_augmentation_from_the_set_for_all_its_arms(tmp_path):
    found = judge(tmp_path, {"mine": synthetic(), "pruned": samples(1)}, protocol="table").filter(kind="arm", main=True)
    assert found.filter(set="mine")["learning_rate"].unique().to_list() == [0.05]
    assert found.filter(set="pruned")["learning_rate"].unique().to_list() == [0.01]
    assert "candidate_8_bit" in found.filter(set="mine")["arm"] and "candidate_8_bit" not in found.filter(set="pruned")["arm"]


def test_sets_of_equal_size_trained_on_alike_share_their_baselines():
    params = DistilledParams(**QUICK)
    inputs = {"real": REAL, "test": TEST, "one": samples(1), "other": samples(1, first=3), "larger": samples(2)}
    shared = [unit.value["sets"] for unit in distilled.units(inputs, params) if unit.value["arm"] == "herding"]
    assert shared == [["one", "other"], ["larger"]]


def test_a_net_that_diverges_has_nothing_right(tmp_path):
    inputs = {"mine": synthetic(training=PLAIN | {"learning_rate": 1e12})}
    found = judge(tmp_path, inputs, protocol="table", real_epochs=0, robustness=False).filter(kind="arm")
    assert found["accuracy"].to_list() == [0.0] * 5


def test_a_learning_rate_is_tried_on_tune_by_each_arm(tmp_path):
    inputs = {"mine": samples(2), "tune": TUNE}
    found = judge(tmp_path, inputs, learning_rates=(1e-7, 0.05), epochs=30, robustness=False, real_epochs=0).filter(kind="arm")
    assert set(found["learning_rate"]) <= {0.01, 0.05}
    with pytest.raises(InputError, match="from.tune: is missing"):
        distilled.units({"real": REAL, "test": TEST, "mine": samples(1)}, DistilledParams(**QUICK, learning_rates=(0.05,)))


@pytest.mark.parametrize("protocol", ["dc_bench", "pca"])
def test_the_order_of_rows_has_no_say(tmp_path, protocol):
    one = judge(tmp_path, {"mine": synthetic(2)}, protocol=protocol)
    other = judge(tmp_path, {"mine": shuffled(synthetic(2)), "real": shuffled(REAL)}, protocol=protocol)
    assert one.equals(other)


def test_a_stopped_unit_goes_on_to_the_same_answers(tmp_path):
    params, inputs = DistilledParams(**QUICK), {"real": REAL, "test": TEST, "mine": samples(1)}
    unit = distilled.units(inputs, params)[0]
    whole, kept = run(tmp_path, [unit], inputs, params), Kept()
    kept.left = 3
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [unit], inputs, params, kept)
    answered = len([name for name in kept if name.endswith("-answers")])
    assert run(tmp_path, [unit], inputs, params, kept)[0].equals(whole[0])
    assert answered == 3 and len([name for name in kept if name.endswith("-answers")]) == 4


def test_random_is_another_choice_for_each_seed_and_the_others_are_one():
    pixels, counts = REAL.torch(["image"])["image"].numpy(), {"across": 2, "down": 1, "slanted": 3}
    picks = {arm: [chosen(arm, REAL, pixels, counts, DRAW, seed, None).tolist() for seed in (0, 1)] for arm in ("random", "herding", "k_medoids")}
    assert picks["random"][0] != picks["random"][1]
    assert picks["herding"][0] == picks["herding"][1]
    labels = REAL.frame(["label"])["label"].to_numpy()
    assert all(np.bincount(labels[rows], minlength=3).tolist() == [2, 1, 3] for pair in picks.values() for rows in pair)


def test_a_herded_sample_is_the_one_nearest_the_mean_of_its_class():
    pixels = REAL.torch(["image"])["image"].numpy()
    rows = chosen("herding", REAL, pixels, dict.fromkeys(NAMES, 1), DRAW, 0, None)
    labels = REAL.frame(["label"])["label"].to_numpy()
    for row in rows:
        own = np.flatnonzero(labels == labels[row])
        off = np.square(pixels[own].astype(float) - pixels[own].mean(axis=0)).sum((1, 2, 3))
        assert own[off.argmin()] == row


def test_a_mosaic_is_cropped_inside_its_cells(tmp_path):
    """Four cells of one grey each: a crop that straddled cells would hold two."""
    cells = np.kron(np.array([[10, 90], [170, 250]]), np.ones((4, 4)))[..., None].astype(np.uint8)
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(["only"]), pa.field("mosaic_grid", pa.int32())])
    table = MemoryTable(pa.table([["a", "b"], [encode_png(cells)] * 2, [0, 0], [2, 2]], schema=schema))
    small = load_set(table, told_by("mine", table, None, None), tmp_path, exact=False)
    batch = small.batches(2, 0, DRAW, [0.0], [1.0], "crops", soft=False)
    seen = {tuple(image.unique().mul(255).round().int().tolist()) for step in range(60) for image in batch(step)[0]}
    assert seen == {(10,), (90,), (170,), (250,)}


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        (MemoryTable(samples(1).table.slice(0, 2)), "from.mine: has no image of class 'slanted'"),
        (samples(1, pixels=(vector_field("pixels", 65), [[0.0] * 65] * 3)), "has 65 numbers in `pixels`, its images are 1 x 8 x 8"),
        (synthetic(soft=None, **{"soft_label": (pa.field("soft_label", pa.list_(pa.float32(), 2)), [[0.5, 0.5]] * 3)}), "soft labels of 2 classes, not 3"),
        (samples(1, training=(pa.field("training", pa.string()), ["{}", "{}", '{"a": 1}'])), "tell 2 different ways"),
    ],
)
def test_a_set_that_cannot_be_judged_says_why(mine, said):
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        distilled.units({"real": REAL, "test": TEST, "mine": mine}, DistilledParams(**QUICK))


def test_a_set_larger_than_what_it_was_made_from_is_refused(tmp_path):
    with pytest.raises(InputError, match="has 1 samples of class 'across', the set has 2"):
        judge(tmp_path, {"mine": samples(2), "real": samples(1)})


def test_without_a_set_there_is_nothing_to_judge():
    with pytest.raises(InputError, match="from: names no set to judge"):
        distilled.units({"real": REAL, "test": TEST}, DistilledParams(**QUICK))
