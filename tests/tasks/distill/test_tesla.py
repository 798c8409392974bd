"""distill.tesla: it distils, it goes on to the same bits, it guards itself, and what it gives can be trained on."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load

import stillroom
from flows.build import build_recipe
from stillroom.draws import Draw
from stillroom.errors import InputError, StoreError
from stillroom.images import decode_batch
from stillroom.operators import Work
from stillroom.tables import MemoryTable
from tasks.distill.tesla import TeslaParams, tesla
from tasks.train.experts import ExpertsParams, experts
from tests.tasks.distill.distilling import Stopped, digits, distil

# N = synthetic images

SIZE = {"side_px": 8, "channels": 1}
RECIPES = Path(__file__).parents[3] / "recipes"
FAST = SIZE | {"iterations": 8, "steps": 4, "check_every": 4, "check_epochs": 20, "check_nets": 1}


@pytest.fixture(scope="module")
def ways(tmp_path_factory) -> MemoryTable:
    """Two experts of six epochs on 600 digits."""
    torch.set_num_threads(1)
    params, samples = ExpertsParams(net="mlp:32", experts=2, epochs=6, batch_size=64, learning_rate=0.05), digits(range(600))
    batches = []
    for unit in experts.units(params):
        work_ = Work(device="cpu", threads=1, scratch=tmp_path_factory.mktemp(unit.name), draw=Draw(7, "train.experts"))
        batches += experts(unit, {"samples": samples}, params, work_)
    return MemoryTable(pa.Table.from_batches(batches))


def distilled(scratch: Path, inputs: dict, saved: dict | None = None, stop_at: int | None = None, **params) -> tuple[pa.Table, dict]:
    return distil(tesla, inputs, FAST | params, scratch, saved, stop_at)


def given(ways: MemoryTable, *, tune: bool = True) -> dict:
    return {"samples": digits(range(10)), "experts": ways} | ({"tune": digits(range(600, 900))} if tune else {})


def test_what_it_gives_trains_better_nets_than_what_it_started_from(ways, tmp_path):
    def accuracy(iterations: int) -> float:
        (tmp_path / str(iterations)).mkdir()
        return distilled(tmp_path / str(iterations), given(ways), iterations=iterations, check_every=20, check_epochs=200, check_nets=2)[1][
            "validation_accuracy"
        ]

    assert accuracy(100) > accuracy(1) + 0.08  # measured: 0.76 and 0.50


@pytest.mark.parametrize("params", [{}, {"labels": "soft"}, {"gradient": "tesla"}])
def test_a_stopped_distillation_goes_on_to_the_same_bits(ways, tmp_path, monkeypatch, params):
    monkeypatch.setattr("tasks.distill._trajectories.SAVE_EVERY", 3)
    (tmp_path / "whole").mkdir(), (tmp_path / "part").mkdir()
    whole, metrics = distilled(tmp_path / "whole", given(ways), **params)
    saved: dict[str, bytes] = {}
    for stop_at in (2, 5, 7):  # before anything is kept, and after
        with pytest.raises(Stopped):
            distilled(tmp_path / "part", given(ways), saved, stop_at, **params)
    assert int(load(saved["distillation"])["done"]) == 6
    again, metrics_again = distilled(tmp_path / "part", given(ways), saved, **params)
    assert again.equals(whole)
    assert metrics_again == metrics


def test_rows_say_what_a_trainer_needs_and_where_they_come_from(ways, tmp_path):
    rows, metrics = distilled(tmp_path, given(ways, tune=False), labels="soft")
    assert rows["label"].to_pylist() == list(range(10))
    assert rows["parents"].to_pylist() == [[f"d{row}"] for row in range(10)]
    assert len(set(rows["sample_id"].to_pylist())) == 10
    told = json.loads(rows["training"][0].as_py())
    assert set(told) == {"mean", "std", "learning_rate", "augment", "labels", "net"}
    soft_NK = np.array(rows["soft_label"].to_pylist())
    assert np.allclose(soft_NK.sum(1), 1, atol=1e-6)
    pixels_N = np.array(rows["pixels"].to_pylist(), np.float32).reshape(10, 1, 8, 8) * told["std"][0] + told["mean"][0]
    shown_N = decode_batch(rows["image"].combine_chunks(), channels=1)
    assert np.array_equal(shown_N, np.clip(np.rint(pixels_N * 255), 0, 255))
    off = shown_N - pixels_N * 255
    assert metrics["uint8_rms_levels"] == pytest.approx(float(np.sqrt((off**2).mean())), abs=1e-3)


def test_labels_are_those_of_the_experts_until_they_are_learnt(ways, tmp_path):
    rows, _ = distilled(tmp_path, given(ways, tune=False), labels="soft", label_learning_rate=1e-12, iterations=1)
    assert [row.index(max(row)) for row in rows["soft_label"].to_pylist()] == list(range(10))


def test_a_student_that_explodes_changes_nothing_and_slows_down(ways, tmp_path):
    rows, metrics = distilled(tmp_path, given(ways, tune=False), learning_rate=1e6, iterations=25)
    assert metrics["rejected_iterations"] == 25
    assert json.loads(rows["training"][0].as_py())["learning_rate"] == pytest.approx(1e6 / 4)
    start, _ = distilled(tmp_path, given(ways, tune=False), iterations=1, image_learning_rate=1e-12)
    assert np.allclose(np.array(rows["pixels"].to_pylist()), np.array(start["pixels"].to_pylist()), atol=1e-6)


def test_it_recovers_and_ends_with_a_usable_set(ways, tmp_path):
    rows, metrics = distilled(tmp_path, given(ways), learning_rate=300.0, iterations=150, check_every=30)
    assert 10 <= metrics["rejected_iterations"] < 150
    assert 0 < json.loads(rows["training"][0].as_py())["learning_rate"] < 30
    assert metrics["validation_accuracy"] > 0.3


def test_images_depend_on_none_of_torchs_generators(ways, tmp_path):
    torch.manual_seed(1)
    first, _ = distilled(tmp_path, given(ways), iterations=2)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert distilled(tmp_path, given(ways), iterations=2)[0].equals(first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_does_not_fit_is_refused(ways, tmp_path):
    def refused(**params) -> str:
        with pytest.raises(InputError) as error:
            distilled(tmp_path, given(ways), **params)
        return str(error.value)

    assert refused(side_px=16) == "side_px: the experts' images have 8, not 16; write side_px: 8"
    assert refused(match_epochs=7) == "match_epochs: 7, but the experts keep epochs 0 to 6; train them longer, or match fewer"
    assert refused(last_start=6) == "last_start: 6 + match_epochs 1 is beyond epoch 6, the experts' last; write last_start: 5"
    with pytest.raises(InputError, match="class 9 has no image to start from"):
        distilled(tmp_path, given(ways) | {"samples": digits(range(9))})
    with pytest.raises(InputError, match="other labels"):
        distilled(tmp_path, given(ways) | {"samples": digits(range(10), [f"n{digit}" for digit in range(10)])})
    with pytest.raises(ValidationError):
        TeslaParams(**FAST | {"steps": 0})


QUICK = ["experts.experts=2", "experts.epochs=3", "distilled.iterations=5", "distilled.check_nets=1", "distilled.check_epochs=5"]


@pytest.mark.server
@pytest.mark.slow
def test_the_shipped_recipe_publishes_images_that_a_trainer_can_use(tmp_path):
    judged = ["judged.seeds=2", "judged.epochs=5", "judged.real_epochs=1", "judged.learning_rates=[]"]
    build_recipe(RECIPES / "tesla_digits.yaml", tmp_path, [*QUICK, *judged])
    train = stillroom.open("tesla-digits@1", store=tmp_path).torch("train", pixels="normalised")
    item = train[0]
    assert item["image"].shape == (1, 8, 8) and train.training["net"] == "mlp:128"
    shown = stillroom.open("tesla-digits@1", store=tmp_path).torch("train")[0]["image"]
    whole = item["image"] * train.training["std"][0] + train.training["mean"][0]
    assert torch.allclose(shown, whole.clamp(0, 1), atol=0.5 / 255 + 1e-6)
    lines = stillroom.table("tesla-digits.judged", store=tmp_path).frame()
    assert {"candidate", "candidate_8_bit", "random", "herding", "k_medoids", "real"} == set(lines["arm"].drop_nulls())
    test = stillroom.open("tesla-digits@1", store=tmp_path).torch("test")
    assert test[0]["image"].shape == (1, 8, 8)  # real rows have no pixels without loss, and are shown as they are
    with pytest.raises(StoreError, match="missing in rows of this split"):
        stillroom.open("tesla-digits@1", store=tmp_path).torch("test", pixels="normalised")[0]
