"""Benchmarks' training recipes: the learning rate step by step, what decays, and passes as a loader makes them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.operators import Work
from tasks.nets.recipe import DC_BENCH, PCA_BENCH, TrainingRecipe, epoch_batches
from tasks.nets.training import fit, seeded_net

DRAW = Draw(7, "train.test")
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 1, 8, 8), np.uint8))
LABELS = torch.arange(10) % 3


def small_net() -> torch.nn.Module:
    torch.set_num_threads(1)  # as the engine does
    return seeded_net("convnet3:4", "init/0", DRAW, num_classes=3, channels=1, side_px=8)


def batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    _, rows = epoch_batches(10, 4, "order/0", DRAW)(step)
    return PIXELS[rows], LABELS[rows]


def trained(recipe: TrainingRecipe, **more) -> list[torch.Tensor]:
    net = small_net()
    steps = recipe.steps(10)
    fit(net, batches, steps=steps, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, device="cpu", mean=[0.5], std=[0.25],
        optimizer=recipe.make_optimizer, schedule=recipe.rate, **more)  # fmt: skip
    return [weight.detach() for weight in net.parameters()]


def test_the_learning_rate_is_a_tenth_from_half_of_the_epochs_on():
    recipe = DC_BENCH.of_epochs(4)
    assert [recipe.rate(step, 8, 0.01) for step in range(8)] == pytest.approx([0.01] * 4 + [0.001] * 4)
    assert DC_BENCH.rate(499, 1000, 0.01) == 0.01 and DC_BENCH.rate(500, 1000, 0.01) == pytest.approx(0.001)


def test_the_cosine_falls_once_an_epoch():
    rates = [PCA_BENCH.of_epochs(3).rate(step, 6, 1e-3) for step in range(6)]
    assert rates == pytest.approx([0.5e-3 * (1 + math.cos(math.pi * epoch / 3)) for epoch in (0, 0, 1, 1, 2, 2)])


def test_sgd_is_torchs_with_momentum_and_decay_on_all_weights():
    recipe = TrainingRecipe("sgd", "step", learning_rate=0.05, weight_decay=0.1, batch_size=4, epochs=4)
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    for step in range(12):
        optimizer.param_groups[0]["lr"] = 0.05 if step < 6 else 0.005
        images, labels = batches(step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net((images / 255 - 0.5) / 0.25), labels).backward()
        optimizer.step()
    for found, wanted in zip(trained(recipe), net.parameters(), strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-5)


def test_adamw_decays_matrices_and_kernels_alone():
    net = small_net()
    groups = PCA_BENCH.make_optimizer(net, 1e-3, 0.01).param_groups
    decayed = {name: group["weight_decay"] for group in groups for name, weight in net.named_parameters() if any(weight is one for one in group["params"])}
    assert set(decayed) == {name for name, _ in net.named_parameters()}
    assert {name for name, decay in decayed.items() if decay} == {name for name, weight in net.named_parameters() if weight.ndim > 1}
    assert set(decayed.values()) == {0.01, 0.0}


@pytest.mark.parametrize("recipe", [DC_BENCH, PCA_BENCH])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path, recipe):
    recipe = recipe.of_epochs(6)
    whole = trained(recipe)

    class Stop(Exception):
        pass

    def stop(done: int, steps: int) -> None:
        if done == 4:
            raise Stop

    work = Work(device="cpu", threads=1, scratch=tmp_path, draw=DRAW)
    with pytest.raises(Stop):
        trained(recipe, checkpoint=work, every=3, on_step=stop)
    assert all(torch.equal(one, other) for one, other in zip(trained(recipe, checkpoint=work, every=3), whole, strict=True))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
def test_an_epoch_has_every_sample_once_in_batches_of_equal_size(samples, batch_size, epoch):
    batch = epoch_batches(samples, batch_size, "order/0", DRAW)
    steps = -(-samples // batch_size)
    found = [batch(epoch * steps + place) for place in range(steps)]
    assert {number for number, _ in found} == {epoch}
    assert sorted(np.concatenate([rows for _, rows in found])) == list(range(samples))
    sizes = [len(rows) for _, rows in found]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1


def test_each_epoch_has_an_order_of_its_own():
    batch = epoch_batches(30, 30, "order/0", DRAW)
    assert not np.array_equal(batch(0)[1], batch(1)[1])


def test_nothing_to_train_on_is_refused():
    with pytest.raises(InputError, match="there are no samples"):
        epoch_batches(0, 4, "order/0", DRAW)
