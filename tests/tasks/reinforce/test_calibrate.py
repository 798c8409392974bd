"""reinforce.calibrate: fates against a loop over plain numbers, thresholds that are hit exactly, and what trainers are shown afterwards."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import stillroom
from stillroom.datasets import TorchSplit
from stillroom.errors import InputError, StageError
from stillroom.fields import image_field, label_field
from stillroom.images import encode_png
from stillroom.operators import Draw
from stillroom.soft_labels import decode, encode, soft_label_type
from stillroom.tables import MemoryTable
from stillroom.views import ViewPolicy, check_contract, draw_views, label_of, view_contract, views_field
from tasks.reinforce.calibrate import CalibrateParams, calibrate
from tasks.train._arm import load_stored

NAMES = ["cat", "dog", "owl", "fox"]
DRAW = Draw(7, "reinforce.teacher")


def taught(probs: list[list[list[float]] | None], labels: list[int | None], top_k: int = 10, names: list[str] = NAMES) -> MemoryTable:
    """A row for each list of views, a view for each list of probabilities; None is a row without views."""
    rows, counts = len(probs), [len(views or []) for views in probs]
    policy, most = ViewPolicy(kinds=("crop",), crop_scale=(0.3, 0.9)), max(counts)
    drawn = draw_views(policy, [f"s{row}" for row in range(rows)], np.full((rows, 2), 8), DRAW, most).values
    views = drawn.take(pa.array([row * most + view for row in range(rows) for view in range(counts[row])], pa.int64()))
    flat = np.array([view for of_row in probs for view in of_row or []], np.float64).reshape(-1, len(names))
    structs = pa.StructArray.from_arrays([*views.flatten(), encode(flat, top_k)], names=[*(field.name for field in views.type), "soft_label"])
    field = views_field(view_contract(policy), soft_label_type(len(names), top_k), {"num_classes": len(names), "top_k": top_k, "temperature": 1.0})
    lists = pa.ListArray.from_arrays(pa.array(np.cumsum([0, *counts]), pa.int32()), structs, mask=pa.array([views is None for views in probs]))
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 1), dtype=np.uint8)
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(names), field])
    return MemoryTable(pa.table([[f"s{row}" for row in range(rows)], [encode_png(image) for image in pixels], labels, lists], schema=schema))


def run(table: MemoryTable, **params: object) -> "stillroom.Applied":
    return stillroom.apply("reinforce.calibrate", table.table, **params)


def labels_of(views: list[dict]) -> list[list[float]]:
    return [[round(value, 3) for value in view["soft_label"]] for view in views or []]


def test_a_threshold_that_is_hit_exactly_is_neither_below_nor_above():
    # Halves, quarters and eighths are exact in float16.
    views = [[p, 1 - p, 0, 0] for p in (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)]
    found = run(taught([views], [0]), discard_below=0.25, soften_below=0.5, discard_above=0.75, smoothing=0.3)
    soft, stays = [0.7, 0.1, 0.1, 0.1], [[0.5, 0.5, 0, 0], [0.625, 0.375, 0, 0], [0.75, 0.25, 0, 0]]
    assert labels_of(found.kept["views"][0].to_list()) == [soft, soft, *stays]
    assert found.kept["views_discarded"].to_list() == [2] and found.kept["views_softened"].to_list() == [2]
    assert found.metrics == {
        "views": 7,
        "thresholds": {"discard_below": 0.25, "soften_below": 0.5, "discard_above": 0.75},
        "shares": {"discarded_below": 0.142857, "discarded_above": 0.142857, "softened": 0.285714, "as_they_were": 0.428571},
        "rows_without_views": 0,
    }


def test_the_true_class_or_the_largest_is_compared():
    # The teacher is sure of a dog; the label says cat.
    table = taught([[[0.125, 0.875, 0, 0]]], [0])
    assert run(table, discard_below=0.5).kept["views_discarded"].to_list() == [1]
    assert run(table, discard_below=0.5, confidence="largest").kept["views_discarded"].to_list() == [0]
    softened = run(table, soften_below=0.9, confidence="largest", smoothing=0.0)
    assert labels_of(softened.kept["views"][0].to_list()) == [[1, 0, 0, 0]]


@given(st.data())
def test_fates_are_those_of_a_loop(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    probs = [rng.dirichlet(np.full(4, 0.5), size=count).tolist() for count in data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=12))] + [
        [[1, 0, 0, 0]]
    ]
    labels = rng.integers(0, 4, len(probs)).tolist()
    low, middle, high = sorted(data.draw(st.lists(st.floats(0, 1), min_size=3, max_size=3)))
    cut = data.draw(st.integers(0, len(probs)))
    table = taught(probs, labels)
    params, metrics = CalibrateParams(discard_below=low, soften_below=middle, discard_above=high), {}
    state = calibrate.setup({"samples": table}, params)
    parts = [table.take(rows).combine_chunks().to_batches() for rows in (range(cut), range(cut, len(probs)))]
    got = [row for part in parts if part for row in calibrate(part[0], params, state, metrics).batch.to_pylist()]
    fates = dict.fromkeys(("discarded_below", "discarded_above", "softened", "as_they_were"), 0)
    for row, found in enumerate(got):
        before, expected = table.table["views"][row].as_py(), []
        for view in before:
            numbers = np.array(view["soft_label"], np.float32)
            c = float(numbers[labels[row]] / numbers.sum(dtype=np.float32))
            fate = "discarded_below" if c < low else "discarded_above" if c > high else "softened" if c < middle else "as_they_were"
            fates[fate] += 1
            if fate == "softened":
                view = view | {"soft_label": [pytest.approx(0.9 if k == labels[row] else 0.1 / 3, abs=1e-3) for k in range(4)]}
            if fate in ("softened", "as_they_were"):
                expected.append(view)
        assert found["views"] == expected
        assert found["views_discarded"] == len(before) - len(expected)
    views = sum(fates.values())
    assert metrics["views"] == views
    assert metrics["shares"] == pytest.approx({fate: count / views for fate, count in fates.items()}, abs=1e-6)
    assert metrics["rows_without_views"] == sum(not row["views"] and row["views_discarded"] > 0 for row in got)


def test_quantiles_are_over_the_views_of_all_rows():
    confidences = np.linspace(0.1, 0.9, 20).round(3)
    table = taught([[[c, 1 - c, 0, 0] for c in confidences[start : start + 4]] for start in range(0, 20, 4)], [0] * 5)
    found = run(table, thresholds="quantile", discard_below="25%", soften_below=0.5, discard_above=0.9)
    # numpy's `lower`: of 20 confidences those at places 4, 9 and 17, and thresholds are neither below nor above themselves.
    assert found.metrics["thresholds"] == pytest.approx(
        {"discard_below": confidences[4], "soften_below": confidences[9], "discard_above": confidences[17]}, abs=1e-3
    )
    assert found.metrics["shares"] == {"discarded_below": 0.2, "discarded_above": 0.1, "softened": 0.25, "as_they_were": 0.45}
    assert found.kept["views_discarded"].to_list() == [4, 0, 0, 0, 2]
    assert found.metrics["rows_without_views"] == 1


def test_many_classes_keep_their_kind_of_label():
    names = [f"class-{index}" for index in range(40)]
    probs = np.full((2, 40), 0.5 / 39)
    probs[[0, 1], [7, 8]] = 0.5
    table = taught([probs.tolist()], [7], top_k=5, names=names)
    found = run(table, soften_below=0.3, smoothing=0.2).kept
    (views,) = found["views"].to_arrow().to_pylist()
    label = decode(pa.array([view["soft_label"] for view in views], soft_label_type(40, 5)), 40)
    assert label[0].argmax() == 7 and label[0][7] == pytest.approx(0.5, rel=0.03)
    assert label[1].argmax() == 7 and label[1][7] == pytest.approx(0.8, rel=0.03) and label[1][39] == pytest.approx(0.2 / 39, rel=0.05)


def test_a_discarded_view_is_never_shown_and_a_row_without_any_comes_plain():
    table = taught([[[0.9, 0.1, 0, 0], [0.1, 0.9, 0, 0], [0.8, 0.2, 0, 0]], [[0.9, 0.1, 0, 0]], None], [0, 1, 2])
    batch = table.take(range(3)).combine_chunks().to_batches()[0]
    params = CalibrateParams(discard_below=0.5)
    out = calibrate(batch, params, calibrate.setup({"samples": table}, params), {}).batch
    assert [None if views is None else len(views) for views in out["views"].to_pylist()] == [2, 0, None]
    assert out["views_discarded"].to_pylist() == [1, 1, 0]
    split, shown = TorchSplit(MemoryTable(pa.Table.from_batches([out])), views="stored", pixels="uint8"), []
    for epoch in range(4):
        split.set_epoch(epoch)
        items = split.__getitems__([0, 1, 2])
        shown.append(round(float(items[0]["soft_label"][0]), 1))
        assert items[1]["soft_label"].tolist() == [0, 1, 0, 0] and items[2]["soft_label"].tolist() == [0, 0, 1, 0]
        plain = TorchSplit(table, pixels="uint8").__getitems__([1, 2])
        assert all((item["image"] == whole["image"]).all() for item, whole in zip(items[1:], plain, strict=True))
    assert shown in ([0.9, 0.8, 0.9, 0.8], [0.8, 0.9, 0.8, 0.9])


def test_the_proofs_student_is_shown_the_same(tmp_path):
    table = taught([[[0.9, 0.1, 0, 0], [0.1, 0.9, 0, 0], [0.8, 0.2, 0, 0]], [[0.9, 0.1, 0, 0]], [[0.3, 0.2, 0.5, 0]]], [0, 1, 2])
    params = CalibrateParams(discard_below=0.5)
    out = calibrate(table.take(range(3)).combine_chunks().to_batches()[0], params, calibrate.setup({"samples": table}, params), {}).batch
    left = MemoryTable(pa.Table.from_batches([out]))
    arm = load_stored(left, tmp_path, None, None, epochs=4)
    split = TorchSplit(left, views="stored", pixels="uint8")
    shown = {epoch: split.set_epoch(epoch) or split.__getitems__([0, 1, 2]) for epoch in range(2)}
    for row in range(3):
        ours = {(arm.pixels_VNCSS[view, row].tobytes(), arm.targets(np.array([view]), np.array([row])).tobytes()) for view in range(2)}
        assert ours == {(items[row]["image"].numpy().tobytes(), items[row]["soft_label"].numpy().tobytes()) for items in shown.values()}
    assert arm.pixels_VNCSS.shape[:2] == (2, 3)


def test_what_is_not_asked_for_stays_as_it_was():
    table = taught([[[0.9, 0.1, 0, 0]], [[0.2, 0.8, 0, 0], [0, 0, 1, 0]]], [0, 0])
    found = run(table, discard_below=0.0)
    assert found.kept["views"].to_list() == table.table["views"].to_pylist()
    schema = {name: table.schema for name in ("samples",)}
    before, after = table.schema.field("views"), calibrate.added(CalibrateParams(discard_below=0.1), schema)["views"]
    assert after.type == before.type and check_contract(after) == check_contract(before)
    assert label_of(after) == label_of(before) | {"varies": True}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "one of them at least is needed"),
        ({"discard_below": 0.5, "soften_below": 0.4}, "thresholds must rise"),
        ({"soften_below": 0.5, "discard_above": 0.4}, "thresholds must rise"),
        ({"discard_below": 1.5}, "less than or equal to 1"),
        ({"discard_below": 0.1, "smoothing": 1.0}, "less than 1"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(params, said):
    with pytest.raises(ValidationError, match=said):
        CalibrateParams(**params)


def test_views_without_a_teacher_and_rows_without_a_label_are_refused():
    hard = pa.schema([label_field(NAMES), views_field(view_contract(ViewPolicy()))])
    with pytest.raises(InputError, match="column 'views': holds no teacher's labels, so there is no confidence to go by; reinforce.teacher stores them"):
        calibrate.added(CalibrateParams(discard_below=0.1), {"samples": hard})
    with pytest.raises(StageError, match="sample 's1' has no label; drop such rows before this stage"):
        run(taught([[[1, 0, 0, 0]], [[1, 0, 0, 0]]], [0, None]), discard_below=0.1)
    with pytest.raises(StageError, match="sample 's0' has label 4, and its soft labels know 4 classes"):
        run(taught([[[1, 0, 0, 0]]], [4]), discard_below=0.1)
