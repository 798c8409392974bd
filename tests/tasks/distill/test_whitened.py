"""Distilling whitened images: all that see them whiten alike, the way back shows them, and who doesn't whiten is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.images import decode_batch
from stillroom.operators import Work
from stillroom.tables import MemoryTable
from tasks.distill.dm import dm
from tasks.distill.tesla import tesla
from tasks.evaluate.distilled import DistilledParams, distilled
from tasks.nets.models import load_classifiers
from tasks.nets.samples import load_images, load_labels
from tasks.nets.whitening import load_whitening
from tasks.train.experts import ExpertsParams, experts
from tests.tasks.distill.distilling import Stopped, digits, distil
from tests.tasks.train.test_zca import fitted

SIZE = {"side_px": 8, "channels": 1, "check_every": 4, "check_epochs": 20, "check_nets": 1}
FAST = {"tesla": (tesla, SIZE | {"iterations": 8, "steps": 4}), "dm": (dm, SIZE | {"net": "mlp:32", "iterations": 6, "batch_size": 50, "augment": []})}


@pytest.fixture(scope="module")
def zca(tmp_path_factory) -> MemoryTable:
    return fitted(tmp_path_factory.mktemp("zca"), digits(range(600)))


@pytest.fixture(scope="module")
def other_zca(tmp_path_factory) -> MemoryTable:
    return fitted(tmp_path_factory.mktemp("other"), digits(range(600)), epsilon=1.0)


@pytest.fixture(scope="module")
def ways(zca, tmp_path_factory) -> MemoryTable:
    """One expert of six epochs on 600 whitened digits."""
    torch.set_num_threads(1)
    params = ExpertsParams(net="mlp:32", experts=1, epochs=6, batch_size=64, learning_rate=0.05)
    (unit,) = experts.units(params)
    work = Work(device="cpu", threads=1, scratch=tmp_path_factory.mktemp("expert"), draw=Draw(7, "train.experts"))
    return MemoryTable(pa.Table.from_batches(list(experts(unit, {"samples": digits(range(600)), "whitening": zca}, params, work))))


def made(kind: str, scratch: Path, zca, ways, saved: dict | None = None, stop_at: int | None = None, **params) -> tuple[pa.Table, dict]:
    operator, fast = FAST[kind]
    inputs = {"samples": digits(range(10)), "tune": digits(range(600, 900)), "whitening": zca}
    inputs |= {"experts": ways} if kind == "tesla" else {"real": digits(range(600))}
    return distil(operator, inputs, fast | params, scratch, saved, stop_at)


def judged(tmp_path: Path, inputs: dict, **params) -> list[dict]:
    """The arms of five epochs on `mlp:8`."""
    given = {"real": digits(range(600)), "test": digits(range(900, 1200))} | inputs
    asked = DistilledParams(**{"nets": ("mlp:8",), "seeds": 1, "epochs": 5, "real_epochs": 1, "robustness": False, "protocol": "table"} | params)
    tables = []
    for unit in distilled.units(given, asked):
        (tmp_path / unit.name).mkdir()
        tables.append(pa.Table.from_batches(distilled(unit, given, asked, Work("cpu", 1, tmp_path / unit.name, Draw(7, "evaluate.distilled")))))
    return [row for row in distilled.finish(tables, asked).to_pylist() if row["kind"] == "arm"]


def test_experts_are_what_the_same_training_on_whitened_arrays_gives(zca, ways, tmp_path):
    from safetensors.torch import load
    from torch.nn import functional

    from tasks.nets.training import index_batches, seeded_net

    samples = digits(range(600))
    images = torch.from_numpy(load_whitening(zca).apply(load_images(samples, tmp_path)))
    labels, draw = torch.from_numpy(load_labels(samples)[0]), Draw(7, "train.experts")
    net = seeded_net("mlp:32", "init/0", draw, num_classes=10, channels=1, side_px=8)
    order = index_batches(600, 64, "order/0", draw)
    for step in range(10):
        rows = torch.from_numpy(order(step))
        gradients = torch.autograd.grad(functional.cross_entropy(net(images[rows]), labels[rows]), list(net.parameters()))
        with torch.no_grad():
            for weight, gradient in zip(net.parameters(), gradients, strict=True):
                weight.sub_(0.05 * gradient)
    found = load(ways.table["weights"][1].as_py())
    assert all(torch.allclose(found[name], tensor, atol=1e-6) for name, tensor in net.state_dict().items())
    assert json.loads(ways.table["config"][1].as_py())["zca"] == load_whitening(zca).model_id


@pytest.mark.parametrize("kind", ["tesla", "dm"])
def test_what_hardly_moves_is_the_whitened_start_and_its_image_the_start(kind, zca, ways, tmp_path):
    rows, metrics = made(kind, tmp_path, zca, ways, iterations=1, image_learning_rate=1e-9)
    start = load_images(digits(range(10)), tmp_path, name="again")
    whitening = load_whitening(zca)
    assert np.allclose(np.array(rows["pixels"].to_pylist()), whitening.apply(start).reshape(10, -1), atol=1e-6)
    assert np.array_equal(decode_batch(rows["image"].combine_chunks(), channels=1), start)
    assert metrics["uint8_clipped"] == 0 and metrics["uint8_rms_levels"] < 0.01
    told = json.loads(rows["training"][0].as_py())
    assert (told["zca"], told["mean"], told["std"]) == (whitening.model_id, whitening.mean, whitening.std)


@pytest.mark.parametrize("kind", ["tesla", "dm"])
def test_a_stopped_distillation_goes_on_to_the_same_bits(kind, zca, ways, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.distill._trajectories.SAVE_EVERY", 3)
    monkeypatch.setattr("tasks.distill.dm.SAVE_EVERY", 3)
    (tmp_path / "whole").mkdir(), (tmp_path / "part").mkdir()
    whole, _ = made(kind, tmp_path / "whole", zca, ways)
    saved: dict[str, bytes] = {}
    with pytest.raises(Stopped):
        made(kind, tmp_path / "part", zca, ways, saved, 5)
    assert made(kind, tmp_path / "part", zca, ways, saved)[0].equals(whole)


def test_they_teach_whitened_nets_more_than_what_they_started_from(zca, ways, tmp_path):
    def accuracy(iterations: int) -> float:
        (tmp_path / str(iterations)).mkdir()
        return made("tesla", tmp_path / str(iterations), zca, ways, iterations=iterations, check_every=20, check_epochs=200)[1]["validation_accuracy"]

    assert accuracy(80) > accuracy(1) + 0.05


def test_every_arm_is_trained_and_judged_on_whitened_images(zca, ways, tmp_path, monkeypatch):
    """Each arm's images are seen to come out of the whitening: real ones, those of 8 bits, and all that are tested."""
    from tasks.nets.whitening import Whitening

    seen: list[str] = []
    honest = Whitening.apply_to_file
    monkeypatch.setattr(Whitening, "apply_to_file", lambda self, pixels, file: seen.append(f"{file.parent.name}/{file.name}") or honest(self, pixels, file))
    rows, _ = made("dm", tmp_path, zca, ways)
    seen.clear()
    arms = judged(tmp_path, {"mine": MemoryTable(rows), "whitening": zca})
    assert [arm["arm"] for arm in arms] == ["candidate", "candidate_8_bit", "random", "herding", "k_medoids", "real"]
    trained = {name.split("/")[0]: name.split("/")[1] for name in seen if not name.endswith("whitened-test")}
    assert trained == {
        "mine-candidate_8_bit-mlp-8": "whitened-set",
        **{f"mine-{arm}-mlp-8": "whitened-real-0" for arm in ("random", "herding", "k_medoids", "real")},
    }
    assert sum(name.endswith("whitened-test") for name in seen) == 6


def test_a_set_that_is_not_whitened_is_judged_as_without(zca, tmp_path):
    (tmp_path / "with").mkdir(), (tmp_path / "without").mkdir()
    assert judged(tmp_path / "with", {"mine": digits(range(10)), "whitening": zca}) == judged(tmp_path / "without", {"mine": digits(range(10))})


def test_whoever_does_not_whiten_alike_is_refused(zca, other_zca, ways, tmp_path):
    inputs = {"samples": digits(range(10)), "experts": ways}
    with pytest.raises(InputError, match="experts: were trained on whitened images; give distil and experts the same `whitening`"):
        distil(tesla, inputs, FAST["tesla"][1], tmp_path)
    with pytest.raises(InputError, match="experts: weren't trained on images whitened so"):
        distil(tesla, inputs | {"whitening": other_zca}, FAST["tesla"][1], tmp_path)
    mine = MemoryTable(made("dm", tmp_path, zca, ways)[0])
    with pytest.raises(InputError, match="from.whitening: is missing, and mine was made for whitened images"):
        judged(tmp_path, {"mine": mine})
    with pytest.raises(InputError, match="from.whitening: is another than mine was made for"):
        judged(tmp_path, {"mine": mine, "whitening": other_zca})
    with pytest.raises(InputError, match="from.mine: was made for whitened images, which protocol pca doesn't crop"):
        judged(tmp_path, {"mine": mine, "whitening": zca}, protocol="pca")
    with pytest.raises(InputError, match="was trained on whitened images, which it can't be given here"):
        load_classifiers(ways, "cpu")
