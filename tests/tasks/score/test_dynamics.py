"""score.dynamics against sums by hand, and against the whole history of a training."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from stillroom.draws import Draw
from stillroom.fields import image_field, label_field
from stillroom.images import encode_png
from stillroom.operators import Unit, Work
from stillroom.tables import MemoryTable
from tasks.nets.samples import load_labelled
from tasks.nets.training import fit, index_batches, normalise, seeded_net
from tasks.score.dynamics import DynamicsParams, Tally, dynamics

# N = 50 samples, K = 3 classes


def samples() -> MemoryTable:
    """Bright, middling and dark images; every fifth has a wrong label, so that some are never learnt."""
    noise = np.random.default_rng(0)
    labels = np.arange(50) % 3
    pixels = (labels[:, None, None, None] * 60 + noise.integers(0, 90, (50, 6, 6, 1))).astype(np.uint8)
    given = np.where(np.arange(50) % 5 == 0, (labels + 1) % 3, labels)
    schema = pa.schema([pa.field("sample_id", pa.string()), image_field(), label_field(["dark", "middling", "bright"])])
    return MemoryTable(pa.table([[f"s{row}" for row in range(50)], [encode_png(image) for image in pixels], given], schema=schema))


PARAMS = DynamicsParams(net="cnn:4", epochs=7, el2n_epochs=[1, 3], batch_size=16, learning_rate=0.02, seeds=2)


def work(tmp_path, saved: dict | None = None) -> Work:
    torch.set_num_threads(1)  # as the engine does
    return Work(device="cpu", threads=1, scratch=tmp_path, draw=Draw(7, "score.dynamics"), saved={} if saved is None else saved)


def scored(unit: Unit, unit_work: Work, params: DynamicsParams = PARAMS) -> pa.Table:
    return pa.Table.from_batches(dynamics(unit, {"samples": samples()}, params, unit_work))


def tally(*right_by_epoch: str) -> dict[str, list[float]]:
    """Scores of samples whose answers were right (1) or wrong (0) epoch by epoch."""
    counted = Tally(np.zeros(len(right_by_epoch), np.int64), [1])
    for epoch in range(len(right_by_epoch[0])):
        counted.add(0, np.array([[1.0, 0.0] if right[epoch] == "1" else [0.0, 1.0] for right in right_by_epoch], np.float32), epoch + 1)
    return {name: values.tolist() for name, values in counted.scores().items()}


def test_forgetting_counts_right_then_wrong_and_never_learnt_is_infinite():
    assert tally("1010", "0000", "0111", "1111", "0010", "1001")["forgetting"] == [2, np.inf, 0, 0, 1, 1]


def test_el2n_at_known_points():
    uniform, perfect, wrong = [0.25] * 4, [0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]
    counted = Tally(np.array([1, 1, 1]), [1, 2])
    for epoch in (1, 2, 3):  # the third doesn't count
        counted.add(0, np.array([uniform, perfect, wrong] if epoch < 3 else [wrong] * 3, np.float32), epoch)
    assert counted.scores()["el2n"] == pytest.approx([np.sqrt(1 - 1 / 4), 0, np.sqrt(2)])


def test_el2n_is_the_norm_of_the_losss_gradient_by_the_logits():
    logits_NK = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels_N = torch.arange(6) % 5
    torch.nn.functional.cross_entropy(logits_NK, labels_N, reduction="sum").backward()
    counted = Tally(labels_N.numpy(), [1])
    counted.add(0, logits_NK.softmax(1).detach().numpy(), 1)
    assert counted.scores()["el2n"] == pytest.approx(logits_NK.grad.norm(dim=1).tolist(), abs=1e-6)


def test_scores_are_those_of_the_whole_history(tmp_path):
    seen, draw = load_labelled(samples(), tmp_path), work(tmp_path).draw
    net = seeded_net("cnn:4", "init/1", draw, **seen.shape)
    order, history = index_batches(50, 16, "order/1", draw), {}

    def keep(done: int, steps: int) -> None:
        for epoch in range(1, 8):
            if done == int(np.ceil(epoch * 50 / 16)):
                net.eval()
                with torch.inference_mode():
                    history[epoch] = net(normalise(torch.from_numpy(np.array(seen.pixels_NCSS)), seen.mean, seen.std)).softmax(1).numpy()

    fit(net, lambda step: seen.at(order(step)), steps=22, lr=0.02, weight_decay=0.05, device="cpu", on_step=keep, mean=seen.mean, std=seen.std)
    found = scored(Unit("seed-1", value=1), work(tmp_path))

    probs_ENK = np.stack([history[epoch] for epoch in range(1, 8)])
    errors_EN = np.linalg.norm(probs_ENK - np.eye(3)[seen.labels_N], axis=2)
    right_EN = probs_ENK.argmax(2) == seen.labels_N
    forgotten_N = (right_EN[:-1] & ~right_EN[1:]).sum(0)
    expected = np.where(right_EN.any(0), forgotten_N, np.inf)
    assert found["sample_id"].to_pylist() == [f"s{row}" for row in range(50)]
    assert found["el2n"].to_numpy() == pytest.approx((errors_EN[0] + errors_EN[2]) / 2, abs=1e-5)
    assert found["forgetting"].to_pylist() == expected.tolist()
    assert np.isinf(expected).any() and (expected == 0).any() and ((expected > 0) & np.isfinite(expected)).any()


def test_seeds_are_averaged_and_one_that_never_learns_makes_it_infinite():
    tables = [
        pa.table({"sample_id": ["a", "b", "c"], "el2n": pa.array([0.2, 0.4, 1.0], pa.float32()), "forgetting": pa.array(forgetting, pa.float32())})
        for forgetting in ([0, 1, 2], [1, np.inf, 4])
    ]
    mean = dynamics.finish(tables)
    assert mean.schema.field("el2n").type == pa.float32()
    assert mean["el2n"].to_pylist() == pytest.approx([0.2, 0.4, 1.0])
    assert mean["forgetting"].to_pylist() == [0.5, np.inf, 3]


def test_wrong_labels_are_harder(tmp_path):
    units = dynamics.units(PARAMS)
    mean = dynamics.finish([scored(unit, work(tmp_path)) for unit in units])["el2n"].to_numpy()
    wrong = np.arange(50) % 5 == 0
    assert [unit.name for unit in units] == ["seed-0", "seed-1"]
    assert (mean[wrong][:, None] > mean[~wrong]).mean() > 0.95  # of all pairs


class Killed(BaseException):
    pass


def test_a_run_that_was_cut_goes_on_to_the_same_scores(tmp_path):
    params = PARAMS.model_copy(update={"epochs": 80})  # 250 steps: one checkpoint on the way
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


def test_a_batch_larger_than_the_table_still_measures_every_epoch(tmp_path):
    measured: list[float] = []
    wide = work(tmp_path)
    wide.report = lambda done, total: measured.append(done)
    scored(Unit("seed-0", value=0), wide, PARAMS.model_copy(update={"batch_size": 500}))
    assert measured == [1, 2, 3, 4, 5, 6, 7]


def test_channels_are_one_or_three():
    with pytest.raises(ValidationError, match="channels"):
        DynamicsParams(channels=2)


@pytest.mark.parametrize("epochs", [[0], [8], [2, 2], []])
def test_epochs_outside_the_training_are_refused(epochs):
    with pytest.raises(ValidationError, match="el2n_epochs"):
        DynamicsParams(epochs=7, el2n_epochs=epochs)
