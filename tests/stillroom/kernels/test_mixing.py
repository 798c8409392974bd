"""Mixing: shares that add up to the image, by hand, and whole numbers all the way."""

import numpy as np
import pytest

from stillroom.kernels.mixing import FULL_WEIGHT, MIXES, anchor_weight, mix


def part(kind: str, weight: int = 0, box: tuple[int, int, int, int] = (0, 0, 0, 0), count: int = 1) -> dict[str, np.ndarray]:
    numbers = {"mix": MIXES.index(kind), "mix_weight": weight} | {f"mix_{name}": value for name, value in zip("yxhw", box, strict=True)}
    return {name: np.full(count, value, np.uint16) for name, value in numbers.items()}


OWN, OTHER = np.full((1, 3, 8, 10), 200, np.uint8), np.full((1, 3, 8, 10), 40, np.uint8)


def test_mixup_is_the_weighted_mean_and_swaps_with_its_weight():
    rng = np.random.default_rng(0)
    own, other = rng.integers(0, 256, (2, 4, 3, 5, 5), dtype=np.uint8)
    weight = 45_000
    seen = mix(own, other, part("mixup", weight, count=4))
    expected = (own.astype(float) * weight + other.astype(float) * (FULL_WEIGHT - weight)) / FULL_WEIGHT
    assert np.abs(seen - expected).max() <= 0.5 + 1e-9
    assert (seen == mix(other, own, part("mixup", FULL_WEIGHT - weight, count=4))).all()
    assert anchor_weight(part("mixup", weight), 5, 5) == pytest.approx(weight / FULL_WEIGHT)


@pytest.mark.parametrize("kind", ["cutmix", "selfmix", "resizemix"])
def test_a_box_shows_the_partner_and_counts_by_its_area(kind):
    seen = mix(OWN, OTHER, part(kind, box=(1, 2, 4, 5)))
    assert (seen[:, :, 1:5, 2:7] == 40).all() and (seen == 40).sum() == 3 * 20
    assert anchor_weight(part(kind, box=(1, 2, 4, 5)), 8, 10) == 1 - 20 / 80


def test_cutmix_takes_the_partners_own_place_and_resizemix_all_of_it():
    ramp = np.broadcast_to(np.arange(10, dtype=np.uint8) * 20, (1, 1, 8, 10))
    cut = mix(OWN[:, :1], ramp, part("cutmix", box=(0, 4, 8, 3)))
    assert cut[0, 0, 0, 4:7].tolist() == [80, 100, 120]
    pasted = mix(OWN[:, :1], ramp, part("resizemix", box=(0, 4, 8, 5)))
    # Ten columns in five: each the mean of about two.
    assert pasted[0, 0, 0, 4:9].tolist() == sorted(pasted[0, 0, 0, 4:9].tolist()) and pasted[0, 0, 0, 8] > 150 > 30 > pasted[0, 0, 0, 4]


def test_unmixed_rows_stay():
    both = np.concatenate([OWN, OWN])
    numbers = {name: np.array([0, value[0]]) for name, value in part("mixup", 1000).items()}
    seen = mix(both, np.concatenate([OTHER, OTHER]), numbers)
    assert (seen[0] == 200).all() and (seen[1] < 60).all()
    assert anchor_weight(numbers, 8, 10)[0] == 1
