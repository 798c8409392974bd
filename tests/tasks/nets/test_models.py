"""Models as rows: they come back whole, and what they say of an image depends on that image alone."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillroom.draws import Draw
from stillroom.errors import InputError, StageError
from stillroom.images import resize
from stillroom.operators import MODEL_COLUMNS
from stillroom.tables import MemoryTable
from tasks.nets.models import (
    Classifier,
    accuracy,
    ensemble_probs,
    folds_of,
    ids_seen,
    judges_of,
    load_classifiers,
    model_batch,
    model_row,
    refuse_below,
)
from tasks.nets.training import seeded_net

NAMES = ["ant", "bee", "cat"]
DRAW = Draw(0, "test")


def config(net: str = "cnn:8", channels: int = 1, side_px: int = 8, names: list[str] = NAMES) -> dict:
    shape = {"channels": channels, "side_px": side_px, "num_classes": len(names)}
    return {"task": "classify", "net": net, **shape, "label_names": names, "mean": [0.4] * channels, "std": [0.3] * channels}


def row(seed: int = 0, **more) -> dict:
    torch.set_num_threads(1)  # as the engine does
    described = config(**more)
    net = seeded_net(described["net"], f"init/{seed}", DRAW, **{name: described[name] for name in ("channels", "side_px", "num_classes")})
    for module in net.modules():  # statistics as after training: the untouched ones would hide a missing `eval`
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.fill_(0.1)
    return model_row(net, described, seed, {"validation_accuracy": 0.5}, "none")


def classifier(**more) -> Classifier:
    return Classifier.from_row(row(**more), "cpu")


def images(rows: int, channels: int = 1, side_px: int = 8) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (rows, channels, side_px, side_px), np.uint8)


def test_a_row_has_the_columns_of_a_table_of_models():
    batch = model_batch([row(0), row(1)])
    assert batch.schema.names == list(MODEL_COLUMNS)
    assert batch["seed"].to_pylist() == [0, 1]
    assert json.loads(batch["config"][0].as_py()) == config()
    assert json.loads(batch["saw"][0].as_py()) == "none"


def test_the_id_is_that_of_config_and_weights():
    ids = {name: made["model_id"] for name, made in {"one": row(), "again": row(), "seed": row(1), "names": row(names=["a", "b", "c"])}.items()}
    assert len(ids["one"]) == 32
    assert ids["one"] == ids["again"]
    assert len(set(ids.values())) == 3


@pytest.mark.parametrize("more", [{}, {"net": "convnet3:4", "channels": 3, "side_px": 12}, {"net": "mlp:4"}])
def test_a_model_comes_back_from_its_row(more):
    made = row(**more)
    (member,) = load_classifiers(MemoryTable(pa.Table.from_batches([model_batch([made])])), "cpu")
    net = seeded_net(member.config["net"], "other", DRAW, **{name: member.config[name] for name in ("channels", "side_px", "num_classes")})
    from safetensors.torch import load

    net.load_state_dict(load(made["weights"]))
    pixels = images(5, member.config["channels"], member.config["side_px"])
    with torch.inference_mode():
        expected = net.eval()((torch.from_numpy(pixels).double() / 255 - 0.4).div(0.3).float()).softmax(1).numpy()
    found = member.probs(pixels, batch=5)
    assert member.label_names == NAMES
    assert member.model_id == made["model_id"]
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("net", ["cnn:8", "convnet3:8", "mlp:8"])
def test_what_is_said_of_a_row_depends_on_that_row_alone(net):
    member, pixels = classifier(net=net), images(23)
    probs, features = member.probs(pixels, 8), member.features(pixels, 8)

    @given(st.permutations(range(23)), st.integers(1, 23))
    def check(order, rows):
        chosen = np.array(order[:rows])  # other neighbours, other slots, other padding
        assert np.array_equal(member.probs(pixels[chosen], 8), probs[chosen])
        assert np.array_equal(member.features(pixels[chosen], 8), features[chosen])

    check()


def test_images_of_another_size_are_resized_and_grey_is_repeated():
    member, pixels = classifier(channels=3, side_px=8), images(4, side_px=20)
    assert np.array_equal(member.probs(pixels, 4), member.probs(np.repeat(resize(pixels, 8), 3, axis=1), 4))


def test_a_grey_model_refuses_colour():
    with pytest.raises(InputError, match=r"takes images of 1 channel, these have 3; decode them with channels: 1$"):
        classifier().probs(images(2, channels=3), 4)


def test_no_images_give_no_rows_of_the_right_width():
    assert classifier().probs(images(0), 4).shape == (0, 3)
    assert classifier().features(images(0), 4).shape == (0, 16)


class Says(torch.nn.Module):
    """A net that says the same of every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.logits.repeat(len(images_BCHW), 1)


def saying(*logits: float, names: list[str] = NAMES) -> Classifier:
    return Classifier(Says(*logits), config(names=names), "0" * 32, "cpu")


def test_an_ensemble_is_the_mean_of_softmaxes_not_of_logits():
    # One member is very sure of class 0; two are fairly sure of class 1.
    members = [saying(20.0, 0.0, 0.0), saying(0.0, 3.0, 0.0), saying(0.0, 3.0, 0.0)]
    probs = ensemble_probs(members, images(2), 4)
    sure, rest = np.exp(3) / (np.exp(3) + 2), 1 / (np.exp(3) + 2)
    assert probs[0] == pytest.approx([(1 + 2 * rest) / 3, 2 * sure / 3, 2 * rest / 3], abs=1e-6)
    assert probs[0].argmax() == 1
    assert np.mean([[20, 0, 0], [0, 3, 0], [0, 3, 0]], axis=0).argmax() == 0
    assert accuracy(members, images(4), np.array([1, 1, 0, 2]), 4) == 0.5


class Turned(torch.nn.Module):
    """Output (class y, turns t) is what one linear layer says of class y, the image turned back t times: as sure of any turn."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, len(NAMES))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.layer(torch.rot90(images_BCHW, -turns, (2, 3)).flatten(1)) for turns in range(4)], dim=2).flatten(1)


def test_the_aggregate_of_a_net_that_is_as_sure_of_any_turn_is_its_single_answer():
    torch.manual_seed(0)
    member = Classifier(Turned(), config() | {"joint": "quarter_turns"}, "0" * 32, "cpu")
    probs = member.probs(images(5), 8)
    assert probs == pytest.approx(member.single().probs(images(5), 8), abs=1e-6)
    assert len(set(probs.round(3)[:, 0].tolist())) == 5


@pytest.mark.parametrize(
    ("joint", "channels", "moved"),
    [
        ("quarter_turns", 1, [lambda pixels, turns=turns: np.rot90(pixels, turns, axes=(2, 3)) for turns in range(4)]),
        ("permutation", 3, [lambda pixels, order=order: pixels[:, order] for order in itertools.permutations(range(3))]),
    ],
)
def test_joint_labels_are_aggregated_as_by_hand_and_come_back_from_a_row(joint, channels, moved):
    torch.set_num_threads(1)
    described, transforms = config("mlp:8", channels) | {"joint": joint}, len(moved)
    net = seeded_net("mlp:8", "init", DRAW, channels=channels, side_px=8, num_classes=3 * transforms).eval()
    member = Classifier.from_row(model_row(net, described, 0, {}, "none"), "cpu")
    pixels = images(5, channels)

    def logits(seen: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return net((torch.from_numpy(seen.copy()).double() / 255 - 0.4).div(0.3).float()).numpy()

    mean = np.mean([logits(move(pixels))[:, transform::transforms] for transform, move in enumerate(moved)], axis=0)
    alone = logits(pixels)[:, ::transforms]
    for asked, expected in ((member, mean), (member.single(), alone)):
        for names, outputs in ((NAMES, [0, 1, 2]), (["cat", "ant"], [2, 0])):
            chosen = np.exp(expected[:, outputs])
            found = asked.with_labels(names).probs(pixels, 4)
            assert found.dtype == np.float32
            assert found == pytest.approx(chosen / chosen.sum(axis=1, keepdims=True), abs=1e-5)
    assert member.with_labels(["cat", "ant"]).single().probs(pixels, 4) == pytest.approx(member.single().with_labels(["cat", "ant"]).probs(pixels, 4))
    assert member.features(pixels, 4).shape == (5, 8)
    assert member.probs(images(0), 4).shape == (0, 3)


def test_labels_are_matched_by_name_and_the_softmax_is_over_them():
    member = saying(1.0, 2.0, 3.0).with_labels(["cat", "ant"])
    assert member.label_names == ["cat", "ant"]
    assert member.probs(images(1), 4)[0] == pytest.approx(np.exp([3, 1]) / np.exp([3, 1]).sum(), abs=1e-6)
    assert member.with_labels(["ant", "cat"]).probs(images(1), 4)[0] == pytest.approx(np.exp([1, 3]) / np.exp([1, 3]).sum(), abs=1e-6)


def test_a_reordered_model_survives_its_row():
    member = classifier(net="mlp:4")
    turned = member.with_labels(["cat", "ant"])
    back = Classifier.from_row(model_row(turned.net, turned.config, 0, {}, "none"), "cpu")
    assert np.array_equal(back.probs(images(3), 4), turned.probs(images(3), 4))


def test_a_label_that_the_model_lacks_is_named():
    with pytest.raises(InputError, match=r"^model 0{12}: has no class 'dog' and 1 more labels; its classes are ant, bee, cat$"):
        saying(1.0, 2.0, 3.0).with_labels(["ant", "dog", "eel"])


def test_what_is_no_classifier_is_refused():
    other = row() | {"config": json.dumps({"task": "class_diffusion"})}
    with pytest.raises(InputError, match="is made for the task 'class_diffusion', a classifier is needed"):
        load_classifiers(MemoryTable(pa.Table.from_batches([model_batch([other])])), "cpu")
    with pytest.raises(InputError, match="models: the table is empty"):
        load_classifiers(MemoryTable(pa.Table.from_batches([model_batch([])])), "cpu")


def test_the_floor_refuses_below_it_only():
    metrics = {"validation_accuracy": 0.9, "validation_rows": 40}
    refuse_below(0.9, metrics, "train.teacher")
    refuse_below(None, {}, "train.teacher")
    with pytest.raises(StageError, match=r"^stage 'train.teacher': accuracy 0.9000 on 40 validation rows is below the floor of 0.95; "):
        refuse_below(0.95, metrics, "train.teacher")


def test_ids_seen_dont_depend_on_their_order():
    assert ids_seen(["b", "a"]) == ids_seen(["a", "b"])
    assert ids_seen(["a", "b"])["rows"] == 2
    assert ids_seen(["a", "c"])["ids_digest"] != ids_seen(["a", "b"])["ids_digest"]


IDS = [f"s{row}" for row in range(3000)]


def test_folds_are_of_one_size_and_hang_on_id_and_seed_alone():
    folds = folds_of(IDS, 5, 7)
    assert np.bincount(folds).tolist() == pytest.approx([600] * 5, abs=80)
    assert folds_of(IDS[::-1][:100], 5, 7).tolist() == folds[::-1][:100].tolist()
    assert (folds_of(IDS, 5, 8) != folds).mean() == pytest.approx(0.8, abs=0.05)
    assert len(folds_of([], 5, 7)) == 0


def test_who_is_sure_not_to_have_seen_a_sample():
    left_out = {"rows": 4, "ids_digest": "0", "left_out": {"fold": 1, "folds": 5, "seed": 7}}
    for saw, unseen in (
        ("none", np.ones(3000, bool)),
        ("unknown", np.zeros(3000, bool)),
        (ids_seen(IDS), np.zeros(3000, bool)),
        (left_out, folds_of(IDS, 5, 7) == 1),
    ):
        member = Classifier.from_row(row() | {"saw": json.dumps(saw)}, "cpu")
        assert (member.unseen(IDS) == unseen).all()
        assert (member.with_labels(["cat", "ant"]).unseen(IDS) == unseen).all()
        assert judges_of([member], IDS, "all").all()


def test_of_each_image_its_judges_are_averaged():
    members = [saying(20.0, 0.0, 0.0), saying(0.0, 3.0, 0.0), saying(0.0, 0.0, 1.0)]
    judges = np.array([[True, False, True, False], [False, False, True, True], [False, True, True, False]])
    each = np.array([member.probs(images(1), 4)[0] for member in members])
    expected = [each[0], each[2], each.mean(axis=0), each[1]]
    assert ensemble_probs(members, images(4), 2, judges_MB=judges) == pytest.approx(np.array(expected), abs=1e-6)
