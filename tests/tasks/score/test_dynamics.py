"""score.dynamics against sums by hand, against autograd, and against the whole history of a training."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from scipy.special import log_softmax, softmax
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

import stillroom
from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.fields import image_field, label_field, score_facts
from stillroom.images import encode_png
from stillroom.operators import Unit, Work
from stillroom.tables import MemoryTable
from tasks.hardness import HARD_END
from tasks.nets.models import Classifier
from tasks.nets.samples import load_labelled
from tasks.nets.training import fit, index_batches, normalise, seeded_net
from tasks.score._tally import Outputs, Tally
from tasks.score._watch import WhileTraining
from tasks.score.dynamics import DynamicsParams, dynamics

# E epochs, N = 50 samples, K = 3 classes, D features

SCORES = ["el2n", "grand", "forgetting", "aum", "margin", "entropy", "dynamic_uncertainty", "dual"]


def samples() -> MemoryTable:
    """Bright, middling and dark images; every fifth has a wrong label, so that some are never learnt."""
    noise = np.random.default_rng(0)
    labels = np.arange(50) % 3
    pixels = (labels[:, None, None, None] * 60 + noise.integers(0, 90, (50, 6, 6, 1))).astype(np.uint8)
    given = np.where(np.arange(50) % 5 == 0, (labels + 1) % 3, labels)
    return table(pixels, given, ["dark", "middling", "bright"])


def table(pixels: np.ndarray, labels: np.ndarray, names: list[str]) -> MemoryTable:
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(names)])
    return MemoryTable(pa.table([[f"s{row}" for row in range(len(labels))], [encode_png(image) for image in pixels], labels], schema=schema))


PARAMS = DynamicsParams(net="cnn:4", epochs=7, el2n_epochs=[1, 3], window=3, dual_epochs=5, batch_size=16, learning_rate=0.02, seeds=2)


def work(tmp_path, saved: dict | None = None) -> Work:
    torch.set_num_threads(1)  # as the engine does
    return Work(device="cpu", threads=1, scratch=tmp_path, draw=Draw(7, "score.dynamics"), saved={} if saved is None else saved)


def scored(unit: Unit, unit_work: Work, params: DynamicsParams = PARAMS) -> pa.Table:
    return pa.Table.from_batches(dynamics(unit, {"samples": samples()}, params, unit_work))


def counting(labels: list[int] | np.ndarray, epochs: int, el2n_epochs: tuple[int, ...] = (1,), window: int = 1, dual_epochs: int = 1) -> Tally:
    return Tally(np.array(labels), epochs=epochs, el2n_epochs=el2n_epochs, window=window, dual_epochs=dual_epochs)


def said(probs: list[list[float]] | np.ndarray) -> Outputs:
    """Outputs of these probabilities, with features of length 0."""
    probs_BK = np.array(probs, np.float32)
    return Outputs(np.log(probs_BK + 1e-30), probs_BK, np.ones(len(probs_BK), np.float32))


def by_hand(logits_ENK: np.ndarray, squares_EN: np.ndarray, final_NK: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Every score of PARAMS, sample by sample, from all that the net said: the definitions, written out."""
    found: dict[str, list[float]] = {name: [] for name in SCORES}
    for sample, label in enumerate(labels):
        logits_EK, log_probs_EK = logits_ENK[:, sample].astype(float), log_softmax(logits_ENK[:, sample].astype(float), axis=1)
        truth = np.exp(log_probs_EK[:, label])
        errors = [float(np.sqrt(sum((np.exp(log_probs_EK[epoch, k]) - (k == label)) ** 2 for k in range(3)))) for epoch in (0, 2)]
        right = [int(row.argmax()) == label for row in logits_EK]
        windows = [truth[start : start + 3] for start in range(len(truth) - 2)]
        first, second = sorted(softmax(final_NK[sample].astype(float)), reverse=True)[:2]
        found["el2n"].append(np.mean(errors))
        found["grand"].append(np.mean([error * np.sqrt(squares_EN[epoch, sample]) for error, epoch in zip(errors, (0, 2), strict=True)]))
        found["forgetting"].append(sum(a and not b for a, b in pairwise(right)) if any(right) else np.inf)
        found["aum"].append(np.mean([row[label] - max(row[k] for k in range(3) if k != label) for row in logits_EK]))
        found["margin"].append(first - second)
        found["entropy"].append(-sum(p * np.log(p) for p in softmax(final_NK[sample].astype(float))))
        found["dynamic_uncertainty"].append(np.mean([np.std(window, ddof=1) for window in windows]))
        found["dual"].append(np.mean([np.std(window, ddof=1) * (1 - np.mean(window)) for window in windows[:3]]))
    return {name: np.array(values) for name, values in found.items()}


def test_forgetting_counts_right_then_wrong_and_never_learnt_is_infinite():
    sequences = ["1010", "0000", "0110", "0111", "1111", "0010", "1001"]
    counted = counting([0] * len(sequences), epochs=4)
    for epoch in range(4):
        counted.add(slice(0, 7), said([[0.9, 0.1] if right[epoch] == "1" else [0.2, 0.8] for right in sequences]), epoch + 1)
    assert counted.scores()["forgetting"].tolist() == [2, np.inf, 1, 0, 0, 1, 1]


def test_el2n_at_known_points():
    uniform, perfect, wrong = [0.25] * 4, [0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]
    counted = counting([1, 1, 1], epochs=3, el2n_epochs=(1, 2))
    for epoch in (1, 2, 3):  # the third doesn't count
        counted.add(slice(0, 3), said([uniform, perfect, wrong] if epoch < 3 else [wrong] * 3), epoch)
    assert counted.scores()["el2n"] == pytest.approx([np.sqrt(1 - 1 / 4), 0, np.sqrt(2)])


def test_margin_and_entropy_at_known_points():
    counted = counting([1, 1, 1], epochs=1)
    counted.add_final(slice(0, 3), np.array([[0.25] * 4, [0.0, 1.0, 0.0, 0.0], [0.5, 0.3, 0.2, 0.0]], np.float32))
    scores = counted.scores()
    assert scores["margin"] == pytest.approx([0, 1, 0.2])
    assert scores["entropy"] == pytest.approx([np.log(4), 0, -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2))])


@pytest.mark.parametrize("bias", [True, False])
def test_el2n_and_grand_are_norms_of_gradients_by_autograd(bias):
    torch.manual_seed(0)
    features_ND, labels_N = torch.randn(6, 8), torch.arange(6) % 5
    head = torch.nn.Linear(8, 5, bias=bias)
    counted = counting(labels_N.numpy(), epochs=1)
    logits_NK = head(features_ND)
    squares_N = features_ND.square().sum(1) + bias
    counted.add(slice(0, 6), Outputs(logits_NK.detach().numpy(), logits_NK.softmax(1).detach().numpy(), squares_N.numpy()), 1)

    by_logits, by_weights = [], []
    for row in range(6):
        logits_K = head(features_ND[row])
        loss = torch.nn.functional.cross_entropy(logits_K, labels_N[row])
        by_logits.append(torch.autograd.grad(loss, logits_K, retain_graph=True)[0].norm().item())
        by_weights.append(torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(head.parameters()))]).norm().item())
    assert counted.scores()["el2n"] == pytest.approx(by_logits, rel=1e-6)
    assert counted.scores()["grand"] == pytest.approx(by_weights, rel=1e-6)


def test_every_score_is_its_definition_in_whatever_order_samples_come():
    draws = np.random.default_rng(0)
    logits_ENK, squares_EN, labels = draws.normal(size=(7, 40, 3)).astype(np.float32), draws.uniform(1, 9, (7, 40)), draws.integers(0, 3, 40)
    counted = counting(labels, epochs=7, el2n_epochs=(1, 3), window=3, dual_epochs=5)
    for epoch in range(7):
        for rows_B in np.split(draws.permutation(40), [7, 30]):
            logits_BK = logits_ENK[epoch, rows_B]
            counted.add(rows_B, Outputs(logits_BK, softmax(logits_BK, axis=1), squares_EN[epoch, rows_B]), epoch + 1)
    counted.add_final(slice(0, 40), softmax(logits_ENK[-1], axis=1))
    expected = by_hand(logits_ENK, squares_EN, logits_ENK[-1], labels)
    assert list(counted.scores()) == SCORES
    for name, values in counted.scores().items():
        assert values == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
    assert len(counted.state["newest"][0]) == 3  # of seven epochs, what the window holds


@pytest.mark.parametrize("measure", ["training", "after"])
def test_scores_are_those_of_the_whole_history(tmp_path, measure):
    params = PARAMS.model_copy(update={"measure": measure})
    seen, draw = load_labelled(samples(), tmp_path), work(tmp_path).draw
    net = seeded_net("cnn:4", "init/1", draw, **seen.shape)
    order, images = index_batches(50, 16, "order/1", draw), normalise(torch.from_numpy(np.array(seen.pixels_NCSS)), seen.mean, seen.std)
    told, after = [], {}
    net.register_forward_hook(lambda net, images, logits: told.append(logits.detach()) if net.training else None)
    net.head.register_forward_pre_hook(lambda head, features: told.append(features[0].detach()) if net.training else None)

    def look(done: int, steps: int) -> None:
        if done in (ends := [int(np.ceil(epoch * 50 / 16)) for epoch in range(1, 8)]):
            net.eval()
            with torch.inference_mode():
                after[ends.index(done)] = net(images).numpy(), net.features(images).numpy()

    fit(net, lambda step: seen.at(order(step)), steps=22, lr=0.02, weight_decay=0.05, device="cpu", on_step=look, mean=seen.mean, std=seen.std)
    logits_ENK, features_END = (np.stack([after[epoch][part] for epoch in range(7)]) for part in (0, 1))
    final_NK = logits_ENK[-1]
    if measure == "training":  # the last of the 22 steps reaches two samples into an eighth epoch
        rows = np.concatenate([order(step) for step in range(22)])[:350].reshape(7, 50)
        features, logits = (np.concatenate(told[part::2])[:350].reshape(7, 50, -1) for part in (0, 1))
        logits_ENK, features_END = (np.stack([said[np.argsort(row)] for said, row in zip(all_said, rows, strict=True)]) for all_said in (logits, features))

    found = scored(Unit("seed-1", value=1), work(tmp_path), params)
    expected = by_hand(logits_ENK, 1 + np.square(features_END).sum(axis=2), final_NK, seen.labels_N)
    assert found["sample_id"].to_pylist() == [f"s{row}" for row in range(50)]
    assert found.column_names[1:] == SCORES
    for name in SCORES:
        assert found[name].to_numpy() == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    assert {0, 1, np.inf} <= set(expected["forgetting"])


def test_grand_is_el2n_times_the_length_of_what_the_head_sees(tmp_path):
    params = PARAMS.model_copy(update={"measure": "after", "epochs": 3, "el2n_epochs": (3,), "window": None, "dual_epochs": None})
    found = scored(Unit("seed-0", value=0), work(tmp_path), params)
    seen, draw = load_labelled(samples(), tmp_path), work(tmp_path).draw
    net = seeded_net("cnn:4", "init/0", draw, **seen.shape)
    order = index_batches(50, 16, "order/0", draw)
    fit(net, lambda step: seen.at(order(step)), steps=10, lr=0.02, weight_decay=0.05, device="cpu", mean=seen.mean, std=seen.std)
    features_ND = Classifier(net, seen.config("cnn:4"), "net", "cpu").features(seen.pixels_NCSS, 256)
    assert np.square(found["grand"].to_numpy()) == pytest.approx(np.square(found["el2n"].to_numpy()) * (1 + np.square(features_ND).sum(axis=1)), rel=1e-5)


def test_seeds_are_averaged_and_one_that_never_learns_makes_it_infinite():
    tables = [
        pa.table({"sample_id": ["a", "b", "c"], "el2n": pa.array([0.2, 0.4, 1.0], pa.float32()), "forgetting": pa.array(forgetting, pa.float32())})
        for forgetting in ([0, 1, 2], [1, np.inf, 4])
    ]
    mean = dynamics.finish(tables)
    assert mean.schema.field("el2n").type == pa.float32()
    assert mean["el2n"].to_pylist() == pytest.approx([0.2, 0.4, 1.0])
    assert mean["forgetting"].to_pylist() == [0.5, np.inf, 3]
    assert [unit.name for unit in dynamics.units(PARAMS)] == ["seed-0", "seed-1"]


@pytest.fixture(scope="module")
def flipped() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Scores of 900 digits of which a tenth has a wrong label, and which these are."""
    pixels, labels = load_digits(return_X_y=True)
    pixels, labels, draws = (pixels[:900].reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8), labels[:900], np.random.default_rng(0)
    wrong = draws.random(900) < 0.1
    given = np.where(wrong, (labels + draws.integers(1, 10, 900)) % 10, labels)
    kept = stillroom.apply("score.dynamics", table(pixels, given, list("0123456789")), net="cnn:8", learning_rate=0.01, seeds=2).kept
    return {name: kept[name].to_numpy() for name in SCORES}, wrong


def hardness(scores: dict[str, np.ndarray], name: str) -> np.ndarray:
    return np.minimum({"high": 1, "low": -1}[HARD_END[name]] * scores[name], 1e9)


# Measured over three plantings: at least 0.997, 0.992, 0.980, 0.895, 0.960, 0.940.
@pytest.mark.parametrize(("score", "least"), [("aum", 0.98), ("el2n", 0.97), ("grand", 0.95), ("forgetting", 0.85), ("margin", 0.92), ("entropy", 0.9)])
def test_planted_wrong_labels_are_at_the_hard_end(flipped, score, least):
    scores, wrong = flipped
    assert roc_auc_score(wrong, hardness(scores, score)) > least


def test_what_nobody_learns_is_steady_so_uncertainty_does_not_show_wrong_labels(flipped):
    scores, wrong = flipped
    assert roc_auc_score(wrong, scores["dynamic_uncertainty"]) < 0.3  # measured: at most 0.18
    assert roc_auc_score(wrong, scores["dual"]) < 0.85  # 0.63 to 0.74


@pytest.mark.parametrize("score", [name for name in SCORES if name != "aum"])
def test_scores_agree_on_which_end_is_hard_where_labels_are_right(flipped, score):
    scores, wrong = flipped
    agreement = spearmanr(hardness(scores, score)[~wrong], hardness(scores, "aum")[~wrong]).statistic
    assert agreement > (0.5 if score in ("margin", "entropy", "dual") else 0.2)  # measured: at least 0.75, and 0.34


class Killed(BaseException):
    pass


@pytest.mark.parametrize("measure", ["training", "after"])
def test_a_run_that_was_cut_goes_on_to_the_same_scores(tmp_path, measure):
    params = PARAMS.model_copy(update={"epochs": 80, "measure": measure})  # 250 steps: one checkpoint on the way, within an epoch
    saved: dict[str, bytes] = {}

    def die(done: float, total: float) -> None:
        if done > 220:
            raise Killed

    dying = work(tmp_path, saved)
    dying.report = die
    with pytest.raises(Killed):
        scored(Unit("seed-0", value=0), dying, params)
    measured: list[float] = []
    resumed_work = work(tmp_path, saved)
    resumed_work.report = lambda done, total: measured.append(done)
    resumed = scored(Unit("seed-0", value=0), resumed_work, params)
    assert measured[0] > 200
    assert resumed.equals(scored(Unit("seed-0", value=0), work(tmp_path), params))
    assert resumed.equals(scored(Unit("seed-0", value=0), work(tmp_path, saved), params))  # from the last checkpoint, with nothing left to train


@pytest.mark.parametrize("measure", ["training", "after"])
def test_a_batch_larger_than_the_table_still_measures_every_epoch(tmp_path, measure):
    measured: list[float] = []
    wide = work(tmp_path)
    wide.report = lambda done, total: measured.append(done)
    scored(Unit("seed-0", value=0), wide, PARAMS.model_copy(update={"batch_size": 500, "measure": measure}))
    assert measured == [1, 2, 3, 4, 5, 6, 7]


def test_each_score_says_what_it_was_made_by_and_which_end_is_hard():
    fields = dynamics.added(DynamicsParams(), {})
    facts = {name: score_facts(field) for name, field in fields.items()}
    assert list(facts) == SCORES
    assert {name: fact["hard"] for name, fact in facts.items()} == {name: HARD_END[name] for name in SCORES}
    assert facts["aum"] == {"hard": "low", "low": None, "high": None, "net": "cnn", "epochs": 20, "seeds": 3, "measure": "training"}
    assert facts["grand"]["of_epochs"] == [3, 4, 5]
    assert (facts["dual"]["window"], facts["dual"]["of_epochs"]) == (10, [*range(1, 21)])
    assert score_facts(image_field()) is None


def test_a_single_epoch_has_no_windows(tmp_path):
    params = DynamicsParams(net="cnn:4", epochs=1)
    assert list(dynamics.added(params, {})) == SCORES[:-2]
    assert scored(Unit("seed-0", value=0), work(tmp_path), params).column_names == ["sample_id", *SCORES[:-2]]


def test_one_class_alone_is_infinitely_easy(tmp_path):
    alone = table(np.zeros((4, 6, 6, 1), np.uint8), np.zeros(4, np.int64), ["it"])
    (batch,) = dynamics(Unit("seed-0", value=0), {"samples": alone}, PARAMS, work(tmp_path))
    assert batch["aum"].to_pylist() == [np.inf] * 4
    assert batch["margin"].to_pylist() == [1] * 4
    assert batch["el2n"].to_pylist() == [0] * 4


def test_a_net_without_a_linear_head_is_refused():
    odd = torch.nn.Sequential()
    odd.head = torch.nn.Identity()
    with pytest.raises(InputError, match="'odd' doesn't end in one linear layer"):
        WhileTraining(Classifier(odd, {"net": "odd"}, "odd", "cpu"), counting([0], 1), lambda step: np.array([0]), 1)


def test_channels_are_one_or_three():
    with pytest.raises(ValidationError, match="channels"):
        DynamicsParams(channels=2)


@pytest.mark.parametrize("epochs", [[0], [8], [2, 2], []])
def test_epochs_outside_the_training_are_refused(epochs):
    with pytest.raises(ValidationError, match="el2n_epochs"):
        DynamicsParams(epochs=7, el2n_epochs=epochs)


@pytest.mark.parametrize(("epochs", "early"), [(1, (1,)), (2, (2,)), (5, (2,)), (10, (2, 3)), (20, (3, 4, 5)), (200, tuple(range(30, 51)))])
def test_early_epochs_go_with_the_length_of_the_training_and_leave_out_the_first(epochs, early):
    assert DynamicsParams(epochs=epochs).early_epochs == early


@pytest.mark.parametrize(("params", "told"), [
    ({"window": 8}, "window: 8 epochs don't fit into a training of 7"),
    ({"window": 1}, "window"),
    ({"window": 4, "dual_epochs": 3}, "dual_epochs: between 4, which a window takes, and all 7 expected, not 3"),
    ({"dual_epochs": 8}, "dual_epochs: between 7, which a window takes, and all 7 expected, not 8"),
])  # fmt: skip
def test_windows_that_do_not_fit_are_refused(params, told):
    with pytest.raises(ValidationError, match=told):
        DynamicsParams(epochs=7, **params)
