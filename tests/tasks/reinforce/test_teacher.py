"""reinforce.teacher: a label is the mean of softmaxes on the replayed pixels, and a teacher that isn't fit is refused."""

import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import stillroom
from stillroom.datasets import TorchSplit
from stillroom.errors import InputError, StageError
from stillroom.fields import image_field, label_field
from stillroom.images import decode_batch, encode_png
from stillroom.operators import Draw, Work
from stillroom.soft_labels import decode, soft_label_type
from stillroom.tables import MemoryTable
from stillroom.views import check_contract, label_of, replay
from tasks.nets.models import folds_of, load_classifiers, model_batch, model_row
from tasks.nets.zoo import build
from tasks.reinforce._labels import Teacher
from tasks.reinforce.teacher import TeacherParams, adds, setup, teacher

NAMES = ["cat", "dog", "owl"]
DRAW = Draw(7, "reinforce.teacher")


def samples(rows: int = 12, names: list[str] = NAMES, side: int = 8) -> MemoryTable:
    pixels = np.random.default_rng(0).integers(0, 256, (rows, side, side, 1), dtype=np.uint8)
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(names)])
    return MemoryTable(pa.table([[f"s{row}" for row in range(rows)], [encode_png(image) for image in pixels], [row % 3 for row in range(rows)]], schema=schema))


def models(seeds: int = 2, names: list[str] = NAMES, channels: int = 1) -> MemoryTable:
    """Untrained nets: any function of the pixels will do."""
    rows = []
    for seed in range(seeds):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = build("mlp:8", num_classes=len(names), channels=channels, side_px=8)
        config = {"task": "classify", "net": "mlp:8", "channels": channels, "side_px": 8, "num_classes": len(names), "label_names": names}
        rows.append(model_row(net, config | {"mean": [0.5] * channels, "std": [0.2] * channels}, seed, {}, "none"))
    return MemoryTable(pa.Table.from_batches([model_batch(rows)]))


def run(table: MemoryTable, params: TeacherParams, state: Teacher | None = None, part: slice = slice(None)) -> pa.ListArray:
    work = Work(device="cpu", threads=1, scratch=None, draw=DRAW)
    state = state or setup({"samples": table, "teacher": models()}, params, work)
    rows = range(table.rows)[part]
    batch = table.take(rows).combine_chunks().to_batches()[0]
    out = teacher(batch, params, state, DRAW)
    assert out.dropped is None and out.rejected is None and out.batch.num_rows == len(rows)
    return out.batch["views"]


def of_views(**views: object) -> TeacherParams:
    return TeacherParams(views={"count": 3, **views}, batch=16)


def test_a_label_is_the_mean_of_softmaxes_on_the_replayed_pixels():
    table, params = samples(), of_views()
    views = run(table, params).values
    field = adds(params, {"samples": table.schema})["views"]
    images = np.repeat(decode_batch(table.table["image"].to_pylist()), 3, axis=0)
    seen = replay(images, views, check_contract(field))
    expected = np.mean([member.probs(seen, 16) for member in load_classifiers(models(), "cpu")], axis=0)
    assert decode(views.field("soft_label"), 3) == pytest.approx(expected, abs=5e-4)  # float16
    assert len(np.unique(expected.round(3), axis=0)) > 12  # the nets do tell views apart


def member_that_says(*probs: float) -> SimpleNamespace:
    return SimpleNamespace(config={"channels": 1}, label_names=NAMES, probs=lambda pixels, batch: np.tile(np.array(probs, np.float32), (len(pixels), 1)))


def test_members_are_averaged_after_the_softmax():
    # The mean of their logits would put `dog` first.
    state = Teacher([member_that_says(0.98, 0.01, 0.01), member_that_says(0.001, 0.5, 0.499)], None)
    label = decode(run(samples(1), of_views(), state).values.field("soft_label"), 3)[0]
    assert label == pytest.approx([0.4905, 0.255, 0.2545], abs=5e-4)


def left_out(folds: int, only: list[int]) -> MemoryTable:
    """The members of `models`, as if each had been trained on all but a fold."""
    rows = models(len(only)).table.to_pylist()
    saws = [json.dumps({"rows": 9, "left_out": {"fold": fold, "folds": folds, "seed": 7}}) for fold in only]
    return MemoryTable(pa.Table.from_batches([model_batch([row | {"saw": saw} for row, saw in zip(rows, saws, strict=True)])]))


def test_a_sample_is_labelled_by_the_members_that_did_not_see_it():
    table, params, work = samples(30), TeacherParams(views={"count": 2}, judge="unseen", batch=16), Work("cpu", 1, None, DRAW)
    only = [0, 1, 2, 1]  # two members left out fold 1
    teachers = left_out(3, only)
    views = run(table, params, setup({"samples": table, "teacher": teachers}, params, work)).values
    found = decode(views.field("soft_label"), 3).reshape(30, 2, 3)
    seen = replay(np.repeat(decode_batch(table.table["image"].to_pylist()), 2, axis=0), views, {"kernel": 1, "side_px": None})
    answers = [member.probs(seen, 16).reshape(30, 2, 3) for member in load_classifiers(teachers, "cpu")]
    folds = folds_of([f"s{row}" for row in range(30)], 3, 7)
    assert set(folds) == {0, 1, 2}
    for row, fold in enumerate(folds):
        own = np.mean([answer[row] for answer, left in zip(answers, only, strict=True) if left == fold], axis=0)
        assert found[row] == pytest.approx(own, abs=5e-4)
    everybody = run(table, params.model_copy(update={"judge": "all"}), setup({"samples": table, "teacher": teachers}, params, work)).values
    assert decode(everybody.field("soft_label"), 3).reshape(30, 2, 3) == pytest.approx(np.mean(answers, axis=0), abs=5e-4)


def test_a_sample_that_every_member_may_have_seen_is_named():
    table, params, work = samples(30), TeacherParams(judge="unseen"), Work("cpu", 1, None, DRAW)
    rest = r"was seen by each of 2 models, or may have been, and judge is unseen; train them with `folds`, or write judge: all$"
    for teachers, first in ((left_out(3, [0, 1]), int((folds_of([f"s{row}" for row in range(30)], 3, 7) == 2).argmax())), (models_that_saw("unknown"), 0)):
        with pytest.raises(InputError, match=rf"^sample 's{first}': {rest}"):
            run(table, params, setup({"samples": table, "teacher": teachers}, params, work))
    assert len(run(table, params, setup({"samples": table, "teacher": models()}, params, work))) == 30  # they say that they saw none


def models_that_saw(what: str) -> MemoryTable:
    rows = models().table.to_pylist()
    return MemoryTable(pa.Table.from_batches([model_batch([row | {"saw": json.dumps(what)} for row in rows])]))


def test_a_budget_of_queries_is_spent_on_the_rows_chosen_and_the_others_keep_their_own_label():
    # A student's margins choose which third of the rows an erring teacher is asked for.
    names = [f"class-{index}" for index in range(20)]
    table = samples(30, names)
    margins = np.random.default_rng(0).random(30).round(3)
    pool = table.table.append_column("margin", pa.array(margins, pa.float32()))
    chosen = stillroom.apply("prune.robust_active", pool, seed=7, teacher_accuracy=0.9, keep_rows=10).kept
    ask = set(chosen["sample_id"])
    teachers = models(names=names)
    found = stillroom.apply("reinforce.teacher", table.table, seed=7, inputs={"teacher": teachers, "ask": chosen}, views={"count": 2}, top_k=5, batch=16)
    assert len(ask) == 10 and found.metrics == {"asked": 10}
    assert found.kept["asked"].to_list() == [sample_id in ask for sample_id in found.kept["sample_id"]]
    everybody = stillroom.apply("reinforce.teacher", table.table, seed=7, inputs={"teacher": teachers}, views={"count": 2}, top_k=5, batch=16).kept
    assert "asked" not in everybody.columns
    for row, (views, taught) in enumerate(zip(found.kept["views"].to_arrow().to_pylist(), everybody["views"].to_arrow().to_pylist(), strict=True)):
        if f"s{row}" in ask:
            assert views == taught
        else:
            assert [{**view, "soft_label": None} for view in views] == [{**view, "soft_label": None} for view in taught]
            own = decode(pa.array([view["soft_label"] for view in views], soft_label_type(20, 5)), 20)
            assert own == pytest.approx(np.eye(20)[[row % 3] * 2], abs=1e-5)


def test_labels_follow_their_rows_through_a_choice_of_half_of_them():
    table = samples(24)
    params = {"views": {"count": 3}, "batch": 16}
    taught = stillroom.apply("reinforce.teacher", table.table, seed=7, inputs={"teacher": models()}, **params).kept
    field = adds(TeacherParams(**params), {"samples": table.schema})["views"]

    def trainer(kept: pl.DataFrame, order: list[int]) -> dict[str, tuple[bytes, bytes]]:
        chosen = kept.select("sample_id", "image", "label", "views")[order].to_arrow(compat_level=pl.CompatLevel.oldest())
        split = TorchSplit(
            MemoryTable(chosen.cast(pa.schema([*[table.schema.field(name) for name in ("sample_id", "image", "label")], field]))), views="stored"
        )
        return {item["sample_id"]: (item["image"].numpy().tobytes(), item["soft_label"].numpy().tobytes()) for item in split}

    half = stillroom.apply("prune.random", taught, seed=1, keep="50%").kept
    whole, some = trainer(taught, list(range(24))), trainer(half, list(range(11, -1, -1)))
    assert len(some) == 12 and some.items() <= whole.items()
    # Nor does it matter whether rows are chosen before or after they are labelled, or with how many others.
    few = stillroom.apply(
        "reinforce.teacher", table.table.filter(pc.is_in(table.table["sample_id"], pa.array(list(some)))), seed=7, inputs={"teacher": models()}, **params
    )
    assert trainer(few.kept, list(range(12))) == some


def test_rows_that_nobody_may_ask_for_need_a_label_and_a_choice_of_other_rows_is_refused():
    table, params, work = samples(3), of_views(), Work("cpu", 1, None, DRAW)
    bare = MemoryTable(table.table.set_column(2, table.schema.field("label"), pa.array([0, None, 2])))
    inputs = {"samples": bare, "teacher": models()}
    assert len(run(bare, params, setup(inputs | {"ask": MemoryTable(bare.table.slice(1, 1))}, params, work))) == 3
    with pytest.raises(StageError, match="sample 's1' has no label"):
        run(bare, params, setup(inputs | {"ask": MemoryTable(bare.table.slice(2, 1))}, params, work))
    other = MemoryTable(pa.table({"sample_id": ["t0", "t1"]}))
    with pytest.raises(StageError, match="none of the 2 rows of `ask` is among the 3 samples"):
        setup(inputs | {"ask": other}, params, work)


def test_temperature_is_taken_on_each_member():
    logits = torch.tensor([[2.0, 1.0, -3.0], [0.5, 4.0, 0.0]])
    state = Teacher([member_that_says(*row.softmax(0).tolist()) for row in logits], None)
    label = decode(run(samples(1), TeacherParams(temperature=4.0), state).values.field("soft_label"), 3)[0]
    assert label == pytest.approx((logits / 4).softmax(1).mean(0).numpy(), abs=5e-4)


def test_the_written_column_is_the_declared_one():
    table = samples()
    for params in (of_views(), of_views(side_px=6, policy=["crop"])):
        field = adds(params, {"samples": table.schema})["views"]
        assert run(table, params).type == field.type
        assert check_contract(field)["side_px"] == params.views.side_px
        assert label_of(field) == {"num_classes": 3, "top_k": 10, "temperature": 1.0}


def test_many_classes_keep_the_top_k():
    names = [f"class-{index}" for index in range(40)]
    table, params = samples(4, names), TeacherParams(views={"count": 2}, top_k=5, batch=8)
    views = run(table, params, setup({"samples": table, "teacher": models(names=names)}, params, Work("cpu", 1, None, DRAW)))
    assert views.type == adds(params, {"samples": table.schema})["views"].type
    # Five ids of 6 bits.
    assert all(len(view["soft_label"]["ids"]) == 4 for row in views.to_pylist() for view in row)


@settings(max_examples=8)
@given(st.integers(1, 11), st.sampled_from([4, 16, 64]))
def test_a_row_does_not_depend_on_its_batch(cut, batch):
    table, params = samples(), TeacherParams(views={"count": 3}, batch=batch)
    whole = run(table, params).to_pylist()
    assert run(table, params, part=slice(cut)).to_pylist() + run(table, params, part=slice(cut, None)).to_pylist() == whole


def test_classes_are_matched_by_name():
    table, params = samples(6, ["owl", "cat", "dog"]), of_views()
    straight, turned = (decode(run(samples(6, names), params).values.field("soft_label"), 3) for names in (NAMES, ["owl", "cat", "dog"]))
    assert (turned == straight[:, [2, 0, 1]]).all()
    with pytest.raises(InputError, match="has no class 'fox'"):
        run(samples(6, ["cat", "dog", "fox"]), params)
    unnamed = pa.schema([field.remove_metadata() if field.name == "label" else field for field in table.schema])
    with pytest.raises(InputError, match="column 'label': has no class names"):
        adds(params, {"samples": unnamed})


def test_grey_images_are_repeated_for_a_teacher_of_colour():
    table, params = samples(), of_views()
    state = setup({"samples": table, "teacher": models(channels=3)}, params, Work("cpu", 1, None, DRAW))
    assert state.channels == 3 and len(run(table, params, state)) == 12


def test_a_weak_teacher_is_refused_with_its_accuracy():
    table, work = samples(30), Work("cpu", 1, None, DRAW)
    pixels = decode_batch(table.table["image"].to_pylist())
    probs = np.mean([member.probs(pixels, 16) for member in load_classifiers(models(), "cpu")], axis=0)
    right = (probs.argmax(axis=1) == table.table["label"].to_numpy()).mean()
    inputs = {"samples": table, "teacher": models(), "check_on": table}
    setup(inputs, TeacherParams(min_accuracy=right - 0.01, batch=16), work)
    with pytest.raises(StageError, match=rf"is right on {right:.1%} of 30 plain images of check_on, and min_accuracy asks for 95.0%"):
        setup(inputs, TeacherParams(min_accuracy=0.95, batch=16), work)
    with pytest.raises(StageError, match="min_accuracy needs samples to measure it on; add check_on"):
        setup({"samples": table, "teacher": models()}, TeacherParams(min_accuracy=0.5), work)


def test_a_broken_image_and_an_odd_size_are_named():
    table, params = samples(4), of_views()
    broken = MemoryTable(table.table.set_column(1, table.schema.field("image"), [[*table.table["image"].to_pylist()[:3], b"no image"]]))
    with pytest.raises(StageError, match=r"sample 's3': not an image.*filter.decodable"):
        run(broken, params)
    odd = MemoryTable(pa.concat_tables([table.table, samples(1, side=9).table]))
    with pytest.raises(StageError, match="sample 's0' has 9x9 px, the first has 8x8; give views a side_px"):
        run(odd, params)
    assert len(run(odd, of_views(side_px=8))) == 5


def test_an_answer_that_is_no_number_is_refused():
    with pytest.raises(StageError, match="sample 's0': the teacher's answer holds NaN"):
        run(samples(2), of_views(), Teacher([member_that_says(float("nan"), 0.5, 0.5)], None))


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"policy": ["identity"]}, "would all be the same"),
        ({"policy": ["crop", "crop"]}, "each once"),
        ({"policy": ["rotate"]}, "Input should be 'identity', 'crop', 'flip', 'affine'"),
        ({"crop_scale": [0.9, 0.5]}, "crop_scale must be"),
        ({"counts": 3}, "Extra inputs are not permitted"),
        ({"side_px": 9000}, "side_px must be between 1 and 8192"),
    ],
)
def test_views_that_make_no_sense_are_refused(wrong, said):
    with pytest.raises(ValidationError, match=said):
        TeacherParams(views=wrong)
