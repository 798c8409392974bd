"""The training loop against torch's own optimizer and schedule, its order of samples, and a run that is cut."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from stillroom.draws import Draw
from stillroom.errors import InputError
from stillroom.operators import Work
from tasks.nets.training import channel_stats, fit, index_batches, normalise, one_cycle, seeded_net

DRAW = Draw(7, "train.test")
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8))
LABELS = torch.arange(40) % 3


def small_net() -> torch.nn.Module:
    torch.set_num_threads(1)  # as the engine does
    return seeded_net("cnn:4", "init/0", DRAW, num_classes=3, channels=1, side_px=8)


def hard_batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = index_batches(40, 16, "order/0", DRAW)(step)
    return PIXELS[rows], LABELS[rows]


def trained(net: torch.nn.Module, batches=hard_batches, steps=12, **more) -> dict[str, torch.Tensor]:
    fit(net, batches, steps=steps, lr=0.01, weight_decay=0.1, device="cpu", mean=[0.5], std=[0.25], **more)
    return net.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def work(tmp_path) -> Work:
    return Work(device="cpu", threads=1, scratch=tmp_path, draw=DRAW)


def test_normalises_by_channel():
    pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 2, 1, 1).repeat(1, 1, 2, 2)
    assert normalise(pixels, [0.5, 0.5], [0.5, 0.25])[0, :, 0, 0].tolist() == [-1.0, 2.0]


def test_channel_stats_are_numpys():
    pixels = np.random.default_rng(1).integers(0, 256, (2500, 3, 4, 4), np.uint8)
    mean, std = channel_stats(pixels)
    assert mean == pytest.approx((pixels / 255).mean((0, 2, 3)).tolist(), abs=6e-5)
    assert std == pytest.approx((pixels / 255).std((0, 2, 3)).tolist(), abs=6e-5)
    assert channel_stats(np.full((2, 1, 2, 2), 255, np.uint8)) == ([1.0], [1.0])


@pytest.mark.parametrize("steps", [10, 57, 400])
def test_one_cycle_is_torchs(steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=steps, cycle_momentum=False)
    for step in range(steps):
        assert one_cycle(step, steps, 0.3) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step + 1 < steps:
            schedule.step()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_of_few_steps_stays_within_its_bounds(steps):
    assert all(0 < one_cycle(step, steps, 0.3) <= 0.3 for step in range(steps))


def test_fit_is_adamw_under_one_cycle():
    theirs = small_net()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=12, cycle_momentum=False)
    theirs.train()
    for step in range(12):
        pixels, labels = hard_batches(step)
        optimizer.zero_grad()
        functional.cross_entropy(theirs((pixels / 255 - 0.5) / 0.25), labels).backward()
        optimizer.step()
        schedule.step()
    ours = trained(small_net())
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(ours[name].double(), tensor.double(), atol=1e-4), name


def test_soft_targets_that_are_certain_are_hard_ones():
    def soft_batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = hard_batches(step)
        return pixels, functional.one_hot(labels, 3).float()

    hard, soft = trained(small_net()), trained(small_net(), soft_batches)
    assert all(torch.allclose(hard[name].double(), soft[name].double(), atol=1e-4) for name in hard)


def test_the_gradient_of_soft_targets_is_probabilities_minus_targets():
    random = np.random.default_rng(2)
    images_BD, targets_BK = random.normal(size=(16, 64)).astype(np.float32), random.dirichlet([0.5] * 3, 16).astype(np.float32)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    logits_BK = images_BD @ net[1].weight.detach().numpy().T + net[1].bias.detach().numpy()
    probs_BK = np.exp(logits_BK) / np.exp(logits_BK).sum(1, keepdims=True)
    trained(net, lambda step: (torch.from_numpy(images_BD.reshape(16, 1, 8, 8)), torch.from_numpy(targets_BK)), steps=1)
    # The mean over the batch of d/dlogits of -sum_k q_k log p_k, and what it comes to at the weights.
    slope_BK = (probs_BK - targets_BK) / 16
    assert net[1].weight.grad.numpy() == pytest.approx(slope_BK.T @ images_BD, abs=1e-5)
    assert net[1].bias.grad.numpy() == pytest.approx(slope_BK.sum(0), abs=1e-6)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_after", [3, 4, 9])
def test_a_run_that_was_cut_goes_on_to_the_same_bits(tmp_path, killed_after):
    def counting(counts: torch.Tensor, kill: int | None = None):
        def on_step(done: int, steps: int) -> None:
            counts[done - 1] += 1
            if done == kill:
                raise Killed

        return on_step

    whole_counts, counts, kept = torch.zeros(12), torch.zeros(12), work(tmp_path)
    whole = trained(small_net(), on_step=counting(whole_counts))
    with pytest.raises(Killed):
        trained(small_net(), on_step=counting(counts, killed_after), checkpoint=kept, every=4, state={"counts": counts})
    again, ran = torch.full((12,), 9.0), []
    resumed = trained(small_net(), on_step=lambda done, steps: (again[done - 1].add_(1), ran.append(done)), checkpoint=kept, every=4, state={"counts": again})
    assert same(whole, resumed)
    # Killed inside step 4, that step's checkpoint was never written.
    first = {3: 1, 4: 1, 9: 9}[killed_after]
    assert ran == list(range(first, 13))
    assert first == 1 or again.tolist() == whole_counts.tolist()


def test_a_finished_run_asked_again_trains_nothing(tmp_path):
    kept = work(tmp_path)
    whole = trained(small_net(), checkpoint=kept)

    def refuse(step: int):
        raise AssertionError("trained again")

    assert same(whole, trained(small_net(), refuse, checkpoint=kept))


def test_torchs_global_generator_is_left_alone():
    before = torch.get_rng_state()
    trained(small_net())
    assert torch.equal(before, torch.get_rng_state())


def test_initial_weights_depend_on_the_key_alone():
    one, again = small_net().state_dict(), small_net().state_dict()
    other = seeded_net("cnn:4", "init/1", DRAW, num_classes=3, channels=1, side_px=8).state_dict()
    assert same(one, again)
    assert not same(one, other)


def test_a_loss_that_is_not_finite_is_refused():
    def broken(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((16, 1, 8, 8), float("inf")), LABELS[:16]

    with pytest.raises(InputError, match=r"^training: the loss is nan after step 4; a lower learning rate may help$"):
        trained(small_net(), broken, every=4)


@given(n=st.integers(1, 50), batch_size=st.integers(1, 70))
def test_every_epoch_sees_each_sample_once(n, batch_size):
    batch = index_batches(n, batch_size, "order", DRAW)
    steps = -(-3 * n // batch_size)
    stream = np.concatenate([batch(step) for step in range(steps)])
    assert all(len(batch(step)) == batch_size for step in range(steps))
    epochs = [stream[epoch * n : (epoch + 1) * n] for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(n))] * 3
    assert n < 8 or not np.array_equal(epochs[0], epochs[1])


def test_a_step_can_be_asked_for_at_any_time():
    forwards, alone = index_batches(10, 4, "order", DRAW), index_batches(10, 4, "order", DRAW)
    expected = [forwards(step).tolist() for step in range(30)]
    assert alone(29).tolist() == expected[29]
    assert alone(3).tolist() == expected[3]
    assert index_batches(10, 4, "another order", DRAW)(3).tolist() != expected[3]


def test_nothing_to_train_on_is_refused():
    with pytest.raises(InputError, match="there are no samples to train on"):
        index_batches(0, 4, "order", DRAW)


def test_whoever_listens_gets_the_logits_before_each_step_and_changes_nothing():
    heard: list[tuple[int, torch.Tensor]] = []
    listened_to = trained(small_net(), steps=3, on_logits=lambda step, logits: heard.append((step, logits)))
    assert same(listened_to, trained(small_net(), steps=3))
    assert [step for step, _ in heard] == [0, 1, 2]
    images, _ = hard_batches(0)
    assert torch.equal(heard[0][1], small_net()(normalise(images, [0.5], [0.25])).detach())  # of the net as it was made, in training mode
    assert not heard[0][1].requires_grad
