"""Views that mix: the teacher labels the mixed pixels, trainers and proofs see the same, and nobody may be lost afterwards."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from stillroom.datasets import TorchSplit
from stillroom.errors import InputError, StoreError
from stillroom.fields import image_field, label_field
from stillroom.images import decode_batch, encode_png
from stillroom.operators import Draw, Work
from stillroom.soft_labels import decode
from stillroom.tables import MemoryTable
from stillroom.views import check_contract, to_numbers, to_records
from tasks.nets.models import load_classifiers, model_batch, model_row
from tasks.nets.zoo import build
from tasks.reinforce import calibrate, hard_views
from tasks.reinforce.teacher import TeacherParams, setup, teacher
from tasks.reinforce.teacher import adds as teacher_adds
from tasks.reinforce.views import ViewsParams, views
from tasks.reinforce.views import adds as views_adds
from tasks.reinforce.views import setup as views_setup
from tasks.train._arm import load_stored

NAMES, SIDE, ROWS = ["cat", "dog", "owl"], 8, 12
DRAW = Draw(7, "reinforce.teacher")
MIXING = ["crop", "mixup", "cutmix", "resizemix", "selfmix"]


def samples() -> MemoryTable:
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, SIDE, SIDE, 3), dtype=np.uint8)
    schema = pa.schema([pa.field("sample_id", pa.string()), pa.field("split", pa.string()), image_field(), label_field(NAMES)])
    split = ["train" if row < 8 else "validation" for row in range(ROWS)]
    return MemoryTable(
        pa.table([[f"s{row}" for row in range(ROWS)], split, [encode_png(one) for one in pixels], [row % 3 for row in range(ROWS)]], schema=schema)
    )


def models() -> MemoryTable:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build("mlp:8", num_classes=3, channels=3, side_px=SIDE)
    config = {"task": "classify", "net": "mlp:8", "channels": 3, "side_px": SIDE, "num_classes": 3, "label_names": NAMES, "mean": [0.5] * 3, "std": [0.2] * 3}
    return MemoryTable(pa.Table.from_batches([model_batch([model_row(net, config, 0, {}, "none")])]))


def labelled(part: slice = slice(None), **of_views: object) -> MemoryTable:
    table, params = samples(), TeacherParams(views={"count": 4, "policy": MIXING, "mix": 0.8, **of_views}, batch=16)
    state = setup({"samples": table, "teacher": models()}, params, Work(device="cpu", threads=1, scratch=None, draw=DRAW))
    batch = table.take(range(ROWS)[part]).combine_chunks().to_batches()[0]
    out = teacher(batch, params, state, DRAW).batch
    return MemoryTable(pa.Table.from_batches([batch]).append_column(teacher_adds(params, {"samples": table.schema})["views"], out["views"]))


def test_the_label_is_the_teachers_answer_to_what_the_trainer_sees():
    table = labelled()
    split, (member,) = TorchSplit(table, views="stored", pixels="uint8"), load_classifiers(models(), "cpu")
    mixed = 0
    for epoch in range(4):
        split.set_epoch(epoch)
        items = split.__getitems__(range(ROWS))
        seen = np.stack([item["image"].numpy() for item in items])
        told = np.stack([item["soft_label"].numpy() for item in items])
        assert told == pytest.approx(member.probs(seen, 16), abs=5e-4)
        plain = decode_batch(table.table["image"].to_pylist())
        mixed += sum((one != other).any() for one, other in zip(seen, plain, strict=True))
    assert mixed > 40
    assert set(to_numbers(table.table["views"].combine_chunks().values)["mix"].tolist()) == {0, 1, 2, 3, 4}


def test_partners_are_of_the_same_split_and_rows_do_not_depend_on_their_batch():
    whole = labelled().table["views"].to_pylist()
    assert labelled(slice(5)).table["views"].to_pylist() + labelled(slice(5, None)).table["views"].to_pylist() == whole
    for row, of_row in enumerate(whole):
        partners = [int(view["partner"][1:]) for view in of_row if view["partner"]]
        assert all(partner != row and (partner < 8) == (row < 8) for partner in partners)


def test_a_proofs_student_sees_what_a_trainer_sees(tmp_path):
    table = labelled()
    arm = load_stored(table, tmp_path, None, None, epochs=4)
    split = TorchSplit(table, views="stored", pixels="uint8")
    seen: dict[int, set[bytes]] = {row: set() for row in range(ROWS)}
    for epoch in range(4):
        split.set_epoch(epoch)
        for row in range(ROWS):
            seen[row].add(split[row]["image"].numpy().tobytes())
    assert seen == {row: {np.asarray(arm.pixels_VNCSS[view, row]).tobytes() for view in range(4)} for row in range(ROWS)}


def test_a_partner_that_is_gone_is_named_in_one_line():
    table = labelled()
    gone = MemoryTable(table.table.slice(0, 1))
    split = TorchSplit(gone, views="stored")
    with pytest.raises(StoreError, match=r"column 'views': mix in sample 's\d+', whose row or view is not in this table; nothing may leave"):
        for epoch in range(4):
            split.set_epoch(epoch)
            split[0]


def test_hard_labels_of_mixed_views_are_weighed_as_the_images_are():
    table, params = samples(), ViewsParams(count=3, policy=["mixup"], mix=1.0)
    batch = table.table.combine_chunks().to_batches()[0]
    column = views(batch, params, views_setup({"samples": table}, params), DRAW).batch["views"]
    shown = TorchSplit(MemoryTable(table.table.append_column(views_adds(params, {"samples": table.schema})["views"], column)), views="stored")
    for row, item in enumerate(shown.__getitems__(range(ROWS))):
        told = item["soft_label"].numpy()
        assert told.sum() == pytest.approx(1) and told[row % 3] >= 0.5 - 1e-6
        weights = {round(view["mix_weight"] / 65535, 4) for view in to_records(column[row].values)}
        assert round(float(told[row % 3]), 4) in weights | {1.0}


def test_views_that_grow_stronger_come_in_their_order():
    table = labelled(policy=["identity", "crop"], strength=[0.1, 1.0])
    split, stored = TorchSplit(table, views="stored", pixels="uint8"), table.table["views"].combine_chunks()
    assert check_contract(table.schema.field("views"))["strength"] == [0.1, 1.0]
    for epoch in range(6):
        split.set_epoch(epoch)
        told = decode(stored.values.field("soft_label").take(pa.array([4 * row + min(epoch, 3) for row in range(ROWS)])), 3)
        assert np.stack([item["soft_label"].numpy() for item in split.__getitems__(range(ROWS))]) == pytest.approx(told)


def test_what_moves_the_numbers_of_views_refuses_those_that_mix():
    with pytest.raises(InputError, match="mixes in views by their number, and discarding some moves numbers"):
        calibrate.calibrate.added(calibrate.CalibrateParams(discard_below=0.1), {"samples": labelled().schema})
    with pytest.raises(ValueError, match="a choice among views moves numbers"):
        hard_views.HardViewsParams(views={"policy": ["crop", "cutmix"]})


def test_who_may_not_be_asked_is_not_mixed_in():
    params, schema = TeacherParams(views={"policy": ["crop", "mixup"]}), samples().schema
    with pytest.raises(InputError, match="views.policy: mixup mix in samples of which `ask` and `judge: unseen` say who may label them alone"):
        teacher_adds(params, {"samples": schema, "ask": schema})
    with pytest.raises(InputError, match="leave mixing kinds out"):
        teacher_adds(params.model_copy(update={"judge": "unseen"}), {"samples": schema})
