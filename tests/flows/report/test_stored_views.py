"""Stored views: the pictures are the replay itself, the classes those of the stored label."""

from base64 import b64decode

import numpy as np
import pyarrow as pa

from flows.report.lineage import Source
from flows.report.stored_views import describe, shown_views, views_stage
from stillroom.images import decode
from stillroom.replay import RANDAUGMENT_OPS
from stillroom.soft_labels import decode as decode_labels
from stillroom.tables import MemoryTable
from stillroom.views import VIEW_TYPE, check_contract, replay, views_field

PLAIN = {"crop_y": 0, "crop_x": 0, "crop_h": 8, "crop_w": 8, "flip": False, "shift_y": 0, "shift_x": 0, "rotate": 0, "scale_y": 10000, "scale_x": 10000}


def test_pictures_and_classes_are_what_is_stored(build):
    table = build.tables("reinforced")
    views = shown_views({"name": "reinforced"}, table, [11], 24)
    stored = table.take([11])["views"].combine_chunks().flatten()
    pixels_CHW = decode(table.take([11])["image"][0].as_py()).transpose(2, 0, 1)
    seen = replay(np.stack([pixels_CHW] * 8), stored, check_contract(table.schema.field("views")))
    probs = decode_labels(stored.field("soft_label"), 10)
    assert views.count == 8 and len(views.strips[0].views) == 5
    for index, view in enumerate(views.strips[0].views):
        assert (decode(b64decode(view.uri.partition(",")[2])) == seen[index].transpose(1, 2, 0)).all()
        assert [name for name, _ in view.classes] == [str(code) for code in np.argsort(-probs[index])[:3]]
        assert view.classes[0][1] == probs[index].max()


def test_views_that_would_replay_otherwise_are_told_and_not_shown(build):
    table = build.tables("reinforced").table
    field = table.schema.field("views")
    other = field.with_metadata(field.metadata | {b"stillroom.views_probe": b"0" * 64})
    views = shown_views({"name": "reinforced"}, MemoryTable(table.set_column(table.schema.names.index("views"), other, table["views"])), [3], 24)
    assert "replays otherwise" in views.note
    assert [view.uri for view in views.strips[0].views] == [""] * 5
    assert views.strips[0].views[0].classes


def test_views_that_no_teacher_labelled_are_shown_without_classes(build):
    table = build.tables("reinforced").table
    field, views = views_field(check_contract(table.schema.field("views"))), table["views"].combine_chunks()
    plain = pa.StructArray.from_arrays([views.values.field(part.name) for part in VIEW_TYPE], fields=list(VIEW_TYPE))
    hard = table.set_column(table.schema.names.index("views"), field, pa.ListArray.from_arrays(views.offsets, plain))
    shown, taught = (shown_views({"name": "reinforced"}, MemoryTable(one), [11], 24) for one in (hard, table))
    assert taught.taught and not shown.taught
    assert [(view.uri, view.said, view.classes) for view in shown.strips[0].views] == [(view.uri, view.said, []) for view in taught.strips[0].views]
    assert views_stage([{"name": "reinforced"}], {}, lambda _: MemoryTable(hard)) == {"name": "reinforced"}


def test_the_published_views_come_first(build):
    tables = {"first": build.tables("reinforced"), "second": build.tables("reinforced"), "plain": build.tables("mixed")}
    stages = [{"name": name} for name in tables]
    assert views_stage(stages, {"train": Source("first")}, tables.__getitem__) == {"name": "first"}
    assert views_stage(stages, {"train": Source("plain")}, tables.__getitem__) == {"name": "second"}


def test_a_column_that_only_has_the_name_is_not_taken_for_views():
    table = MemoryTable(pa.table({"sample_id": ["a"], "views": [12]}))
    assert views_stage([{"name": "raw"}], {}, lambda _: table) is None


def test_parameters_are_told_in_words_and_what_is_left_alone_is_not():
    assert describe(PLAIN, (8, 8)) == "as it is"
    assert describe(PLAIN | {"crop_h": 6, "crop_y": 1}, (8, 8)) == "crop 8 × 6 at 0, 1"
    moved = PLAIN | {"flip": True, "rotate": -320, "scale_y": 9500, "scale_x": 10500, "shift_x": 64}
    assert describe(moved, (8, 8)) == "flipped; turned −3.2°; scaled 1.05 × 0.95; shifted +0.25, +0.00 px"


def test_further_kinds_are_said_in_words():
    ops = {name: number for number, name in enumerate(RANDAUGMENT_OPS)}
    steps = {"op_1": ops["rotate"], "magnitude_1": 19, "op_2": ops["posterize"], "magnitude_2": 19, "op_3": ops["equalize"], "magnitude_3": 18}
    assert describe(PLAIN | steps | {"op_4": ops["identity"], "magnitude_4": 18}, (8, 8)) == "rotate −9; posterize 9; equalize"
    erased = {"erase_y": 1, "erase_x": 2, "erase_h": 3, "erase_w": 4, "random_field": np.zeros((4, 4, 3))}
    assert describe(PLAIN | erased | {"mix": 2, "partner": "0123456789ab", "partner_view": 1}, (8, 8)) == "erased 4 × 3 at 2, 1; cutmix with 01234567"
    assert describe(PLAIN | {"mix": 4, "partner": None, "partner_view": 3, "quarter_turns": 1}, (8, 8)) == "turned 90°; selfmix with its view 3"
