"""Weights from others: read whole, never executed, and refused by one line."""

import argparse
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stillroom.errors import InputError
from tasks.nets.weights import load_into, read_weights
from tasks.nets.zoo import build


def net(num_classes: int = 3) -> torch.nn.Module:
    return build("cnn:4", num_classes=num_classes, channels=1, side_px=8)


WEIGHTS = {name: tensor.clone() for name, tensor in net().state_dict().items()}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = WEIGHTS) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def saved(tmp_path: Path, value: object, **more: bool) -> Path:
    torch.save(value, tmp_path / "model.pth.tar", **more)
    return tmp_path / "model.pth.tar"


def test_reads_safetensors_whatever_the_files_name(tmp_path):
    save_file(WEIGHTS, tmp_path / "weights.bin")
    assert same(read_weights(tmp_path / "weights.bin"))


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_a_torch_file_of_weights(tmp_path, zipped):
    assert same(read_weights(saved(tmp_path, WEIGHTS, _use_new_zipfile_serialization=zipped)))


def test_reads_a_timm_checkpoint_and_prefers_its_averaged_weights(tmp_path):
    averaged = {f"module.{name}": tensor.half() for name, tensor in WEIGHTS.items()}
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1).state_dict()
    checkpoint = {
        "epoch": 3,
        "arch": "cnn",
        "args": argparse.Namespace(lr=0.1),
        "optimizer": optimizer,
        "metric": 81.2,
        "state_dict": {"worse": torch.zeros(1)},
    }
    found = read_weights(saved(tmp_path, checkpoint | {"state_dict_ema": averaged}))
    assert same(found, {name: tensor.half().float() if tensor.is_floating_point() else tensor for name, tensor in WEIGHTS.items()})
    assert list(read_weights(saved(tmp_path, checkpoint))) == ["worse"]


class Payload:
    """What a hostile file holds: unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle", "inside a checkpoint"])
def test_a_payload_is_refused_and_never_run(tmp_path, kind):
    payload, file = Payload(tmp_path / "owned"), tmp_path / "model.pt"
    if kind == "bare pickle":
        file.write_bytes(pickle.dumps(payload))
    else:
        torch.save(
            {"state_dict": WEIGHTS, "extra": payload} if kind == "inside a checkpoint" else payload, file, _use_new_zipfile_serialization=kind != "legacy"
        )
    with pytest.raises(InputError) as refused:
        read_weights(file)
    assert not (tmp_path / "owned").exists()
    assert str(refused.value).startswith(f"{file}: holds a pickle that could run code, and is not loaded; save its weights as safetensors: ")
    assert "\n" not in str(refused.value)
    # The payload is a live one.
    with pytest.raises(FileExistsError):
        for _ in range(2):
            pickle.loads(file.read_bytes()) if kind == "bare pickle" else torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is neither safetensors nor a torch checkpoint"),
        (b"<html>not found</html>", "is neither safetensors nor a torch checkpoint"),
        (b"\x08\0\0\0\0\0\0\0{broken}", "is a damaged safetensors file"),
        (b"PK\x03\x04 cut", "is neither safetensors nor a torch checkpoint"),
    ],
)
def test_other_files_are_refused_by_one_line(tmp_path, content, said):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_weights(tmp_path / "model.pt")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_zip_without_weights_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match="is neither safetensors nor a torch checkpoint"):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize(("value", "said"), [([1, 2], "holds a list, not weights by name"), ({"epoch": 3}, "'epoch' is no tensor"), ({}, "holds no weights")])
def test_a_checkpoint_without_weights_is_refused(tmp_path, value, said):
    with pytest.raises(InputError) as refused:
        read_weights(saved(tmp_path, value))
    assert said in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="absent.pt: no such file"):
        read_weights(tmp_path / "absent.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("head.bias"), "lacks 1 of the net's 20 tensors, 'head.bias' first"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "has 1 tensors that the net lacks, 'extra' first"),
        (lambda weights: weights.update({"head.bias": torch.zeros(5)}), "'head.bias' has the shape [5], the net's has [3]"),
    ],
)
def test_weights_of_another_net_are_refused_by_their_first_difference(change, said):
    weights = dict(WEIGHTS)
    change(weights)
    with pytest.raises(InputError) as refused:
        load_into(net(), weights, Path("model.pt"))
    assert str(refused.value) == f"model.pt: {said}; net, side_px, channels and the number of classes must be those it was trained with"


def test_a_head_can_be_left_out_and_counts_may_be_missing():
    headless = net()
    headless.head = torch.nn.Identity()
    given = {name: tensor for name, tensor in WEIGHTS.items() if not name.endswith("num_batches_tracked")}
    load_into(headless, given, Path("model.pt"), without=("head",))
    assert torch.equal(headless.convs[0].weight, WEIGHTS["convs.0.weight"])
