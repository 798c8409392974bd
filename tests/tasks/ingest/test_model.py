"""ingest.model: a classifier comes in whole, is matched by name and measured, and no file of it is executed."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from stillroom.draws import Draw
from stillroom.errors import InputError, StageError
from stillroom.fields import image_field, label_field
from stillroom.images import encode_png
from stillroom.operators import Work
from stillroom.tables import MemoryTable
from tasks.ingest.model import ModelParams, model
from tasks.nets.models import Classifier, load_classifiers

SIZES = {"net": "mlp:2", "side_px": 4, "channels": 1, "mean": [0.5], "std": [0.5]}


def brightness() -> dict[str, torch.Tensor]:
    """Weights of an `mlp:2` that says dark, middling or bright, in this order of outputs."""
    return {
        "body.0.weight": torch.ones(2, 16) / 16 * torch.tensor([[1.0], [-1.0]]),
        "body.0.bias": torch.zeros(2),
        "body.2.weight": torch.eye(2),
        "body.2.bias": torch.zeros(2),
        "head.weight": torch.tensor([[0.0, 8.0], [0.0, 0.0], [8.0, 0.0]]),
        "head.bias": torch.tensor([0.0, 2.0, 0.0]),
    }


def samples(names: list[str] | None, shades: dict[str, int] | None = None) -> MemoryTable:
    shades = shades or {"dark": 0, "middling": 128, "bright": 255}
    images = [encode_png(np.full((4, 4, 1), shade, np.uint8)) for shade in shades.values()]
    labels = [(names or list(shades)).index(name) for name in shades]
    label = label_field(names) if names else pa.field("label", pa.int64())
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label])
    return MemoryTable(pa.table([list(shades), images, labels], schema=schema))


def brought(tmp_path: Path, inputs: dict[str, MemoryTable] | None = None, file: Path | None = None, **params) -> dict:
    if file is None:
        save_file(brightness(), file := tmp_path / "model.safetensors")
    asked = ModelParams(**SIZES | {"file": file, "classes": ["dark", "middling", "bright"], "saw": "none"} | params)
    work = Work(device="cpu", threads=1, scratch=tmp_path, draw=Draw(0, "ingest.model"))
    (unit,) = model.units()
    (batch,) = model(unit, inputs or {}, asked, work)
    (row,) = batch.to_pylist()
    assert ("validation_accuracy" in work.metrics) == bool(inputs)
    return row


def test_a_safetensors_file_comes_in_whole(tmp_path):
    row = brought(tmp_path, saw="ImageNet-1k")
    member = Classifier.from_row(row, "cpu")
    weights = member.net.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in brightness().items())
    assert member.label_names == ["dark", "middling", "bright"]
    assert json.loads(row["saw"]) == "ImageNet-1k"
    assert json.loads(row["metrics"]) == {}


def test_a_torch_checkpoint_gives_the_same_model(tmp_path):
    torch.save({"epoch": 1, "state_dict": {f"module.{name}": tensor for name, tensor in brightness().items()}}, tmp_path / "model_best.pth.tar")
    assert brought(tmp_path, file=tmp_path / "model_best.pth.tar")["model_id"] == brought(tmp_path)["model_id"]


def test_classes_may_be_a_file(tmp_path):
    (tmp_path / "classes.txt").write_text("dark\nmiddling\n bright \n\n", encoding="utf-8")
    assert brought(tmp_path, classes=tmp_path / "classes.txt")["model_id"] == brought(tmp_path)["model_id"]


@pytest.mark.parametrize("names", [["dark", "middling", "bright"], ["middling", "bright", "dark"], ["bright", "dark", "middling"]])
def test_classes_are_matched_by_name_whatever_their_order(tmp_path, names):
    row = brought(tmp_path, {"check_on": samples(names)}, floor=1.0)
    assert json.loads(row["metrics"]) == {"validation_accuracy": 1.0, "validation_rows": 3}
    (member,) = load_classifiers(MemoryTable(pa.Table.from_pylist([row])), "cpu")
    assert member.with_labels(names).probs(np.full((1, 1, 4, 4), 255, np.uint8), 4).argmax() == names.index("bright")


def test_a_model_may_know_more_classes_than_the_labels(tmp_path):
    labels = ["bright", "dark"]
    row = brought(tmp_path, {"check_on": samples(labels, {"dark": 100, "bright": 150})})
    assert json.loads(row["metrics"])["validation_accuracy"] == 1.0  # both would be middling among three


def test_wrong_names_of_the_outputs_show_in_the_accuracy(tmp_path):
    with pytest.raises(StageError, match=r"^stage 'ingest.model': accuracy 0.3333 on 3 validation rows is below the floor of 0.9; "):
        brought(tmp_path, {"check_on": samples(["dark", "middling", "bright"])}, classes=["bright", "middling", "dark"], floor="90%")


def test_a_label_that_the_model_lacks_is_named(tmp_path):
    with pytest.raises(InputError, match=r"has no class 'pitch black'; its classes are dark, middling, bright$"):
        brought(tmp_path, {"check_on": samples(["dark", "middling", "bright", "pitch black"])})


def test_labels_without_names_cant_be_matched(tmp_path):
    with pytest.raises(InputError, match=r"^check_on: its labels have no names"):
        brought(tmp_path, {"check_on": samples(None)})


def test_a_floor_needs_rows_to_measure_on(tmp_path):
    with pytest.raises(InputError, match=r"^floor: there is nothing to measure the model on; write from: \{check_on: split.validation\}$"):
        brought(tmp_path, floor=0.5)


class Payload:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_pickle_payload_is_refused_by_one_line_and_never_run(tmp_path):
    torch.save({"state_dict": brightness(), "note": Payload(tmp_path / "owned")}, tmp_path / "model.pt")
    with pytest.raises(InputError) as refused:
        brought(tmp_path, file=tmp_path / "model.pt")
    assert not (tmp_path / "owned").exists()
    assert str(refused.value).startswith(f"{tmp_path / 'model.pt'}: holds a pickle that could run code, and is not loaded; save its weights as safetensors: ")
    assert "\n" not in str(refused.value)


def test_a_file_of_another_net_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"model.safetensors: 'body.0.weight' has the shape \[2, 16\], the net's has \[4, 16\]; net, side_px, channels and"):
        brought(tmp_path, net="mlp:4")
    with pytest.raises(InputError, match=r"'head.weight' has the shape \[3, 2\], the net's has \[4, 2\]"):
        brought(tmp_path, classes=["dark", "middling", "bright", "glaring"])


@pytest.mark.parametrize("content", [b"dark\xff\nbright", None])
def test_a_file_of_classes_that_is_no_text_is_refused(tmp_path, content):
    classes = tmp_path / "classes.txt"
    classes.write_bytes(content) if content else classes.mkdir()
    with pytest.raises(InputError) as refused:
        brought(tmp_path, classes=classes)
    assert str(refused.value) == f"{classes}: is no readable text in UTF-8; write a class name a line"


@pytest.mark.parametrize(
    ("classes", "said"),
    [(["dark"], "classes: two or more class names expected, not 1"), (["dark", "bright", "dark"], "classes: the name 'dark' stands there twice")],
)
def test_classes_that_cant_be_are_refused(tmp_path, classes, said):
    with pytest.raises(InputError) as refused:
        brought(tmp_path, classes=classes)
    assert str(refused.value) == said


@pytest.mark.parametrize("params", [{"mean": [0.5, 0.5]}, {"std": [0.0]}, {"channels": 2}, {"net": "mpl"}])
def test_parameters_that_dont_fit_are_refused(tmp_path, params):
    with pytest.raises(ValidationError):
        ModelParams(**SIZES | {"file": tmp_path, "classes": ["a", "b"]} | params)
