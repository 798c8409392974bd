"""generate.class_diffusion: an image depends on its own row alone, and its row says how to draw it again."""

import json

import numpy as np
import pyarrow as pa
import pytest

from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.fields import label_field, label_names, with_meaning
from stillroom.images import decode
from stillroom.operators import Work
from stillroom.tables import MemoryTable
from tasks.generate.class_diffusion import ClassDiffusionParams, class_diffusion
from tasks.nets.diffusion import build_unet, load_unet, make_scheduler, noise_of, sample
from tasks.nets.models import model_batch, model_row

NAMES = ["a", "b", "c"]
CONFIG = {
    "task": "class_diffusion",
    "channels": 1,
    "side_px": 9,
    "num_classes": 3,
    "label_names": NAMES,
    "width": 8,
    "schedule": "cosine",
    "predicts": "velocity",
}


@pytest.fixture(scope="module")
def model() -> MemoryTable:
    """An untrained net whose answers are far from 0."""
    import torch

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        unet = build_unet(CONFIG)
        for weight in unet.conv_out.parameters():
            weight.mul_(20)
    return MemoryTable(pa.Table.from_batches([model_batch([model_row(unet, CONFIG, 0, {}, "none")])]))


def draw_rows(model: MemoryTable, tmp_path, **params) -> list[dict]:
    settings = ClassDiffusionParams(**{"per_class": 5, "steps": 3, "batch": 4} | params)
    schema = pa.schema([with_meaning(name, kind) for name, kind in class_diffusion.added(settings, {"model": model.schema}).items()])
    work = Work(device="cpu", threads=1, scratch=tmp_path, draw=Draw(0, "generate.class_diffusion"))
    units = class_diffusion.units({"model": model}, settings)
    batches = [batch for unit in units for batch in class_diffusion(unit, {"model": model}, settings, work, schema)]
    assert all(batch.schema.equals(schema, check_metadata=True) for batch in batches)
    return [row for batch in batches for row in batch.to_pylist()]


def test_gives_the_classes_in_order_with_their_names(model, tmp_path):
    rows = draw_rows(model, tmp_path, per_class=2)
    assert [(row["label"], row["label_name"]) for row in rows] == [(label, NAMES[label]) for label in range(3) for _ in range(2)]
    assert [row["source"] for row in rows] == [f"generated:{name}/{index}" for name in NAMES for index in range(2)]
    assert {(row["width"], row["height"], row["format"], row["split"], row["synthetic"]) for row in rows} == {(9, 9, "png", "train", True)}
    assert len({row["sample_id"] for row in rows}) == len({row["image"] for row in rows}) == 6


@pytest.mark.parametrize("rows_per_unit", [1, 4, 7])
def test_no_row_depends_on_the_cut_into_units(model, tmp_path, rows_per_unit):
    assert draw_rows(model, tmp_path, rows_per_unit=rows_per_unit) == draw_rows(model, tmp_path)


def test_a_row_keeps_its_image_when_more_are_asked_for(model, tmp_path):
    more = {row["sample_id"]: row for row in draw_rows(model, tmp_path, per_class=7)}
    assert all(more[row["sample_id"]] == row for row in draw_rows(model, tmp_path))


def test_another_batch_changes_a_pixel_by_one_level_at_most(model, tmp_path):
    for one, other in zip(draw_rows(model, tmp_path), draw_rows(model, tmp_path, batch=15), strict=True):
        assert one["sample_id"] == other["sample_id"]
        assert np.abs(decode(one["image"]).astype(int) - decode(other["image"])).max() <= 1


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_row_can_be_drawn_again_from_its_own_columns(model, tmp_path, guidance):
    row = draw_rows(model, tmp_path, guidance=guidance)[-1]
    weights = model.take([0])["weights"][0].as_py()
    unet, scheduler = load_unet(CONFIG, weights, "cpu"), make_scheduler(CONFIG)
    again = sample(unet, scheduler, noise_of([row["seed"]] * 4, CONFIG), [row["label"]] * 4, CONFIG, steps=row["steps"], guidance=row["guidance"])
    assert np.array_equal(again[0].transpose(1, 2, 0), decode(row["image"]))
    told = json.loads(row["scheduler"])
    assert (told["class"], told["eta"], told["prediction_type"]) == ("DDIMScheduler", 0, "v_prediction")


def test_guidance_changes_images_and_not_ids(model, tmp_path):
    plain, guided = draw_rows(model, tmp_path, guidance=1), draw_rows(model, tmp_path, guidance=3)
    assert [row["sample_id"] for row in plain] == [row["sample_id"] for row in guided]
    assert [row["image"] for row in plain] != [row["image"] for row in guided]


def test_label_names_come_from_the_models_schema():
    named = pa.schema([label_field(["a", "b"], "model_id")])
    fields = class_diffusion.added(ClassDiffusionParams(per_class=1), {"model": named})
    assert label_names(pa.schema([fields["label"]])) == ["a", "b"]
    unnamed = class_diffusion.added(ClassDiffusionParams(per_class=1), {"model": pa.schema([("model_id", pa.string())])})
    assert unnamed["label"] == pa.field("label", pa.int64())


def test_refuses_a_classifier(tmp_path):
    import torch

    row = model_row(torch.nn.Linear(1, 1), {**CONFIG, "task": "classify"}, 0, {}, "none")
    classifier = MemoryTable(pa.Table.from_batches([model_batch([row])]))
    with pytest.raises(InputError, match="its task is 'classify', not 'class_diffusion'"):
        draw_rows(classifier, tmp_path)


def test_refuses_several_models(model):
    two = MemoryTable(pa.concat_tables([model.table, model.table]))
    with pytest.raises(InputError, match="holds 2 models"):
        class_diffusion.units({"model": two}, ClassDiffusionParams(per_class=1))
