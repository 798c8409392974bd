"""Drawing the further kinds of views: how often, how strong, with whom; and the contract that guards their replay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from stillroom.draws import Draw
from stillroom.errors import StoreError
from stillroom.kernels import colour
from stillroom.kernels.mixing import MIXES
from stillroom.replay import RANDAUGMENT_OPS
from stillroom.views import (
    KINDS,
    Peers,
    ViewPolicy,
    anchor_weights,
    check_contract,
    draw_view,
    draw_views,
    identity_views,
    replay,
    to_numbers,
    view_contract,
    views_field,
)

DRAW = Draw(7, "reinforce.teacher")


def ids(count: int) -> list[str]:
    return [f"s{row}" for row in range(count)]


def drawn(policy: ViewPolicy, samples: int, count: int, side: int = 28, peers: Peers | None = None) -> dict[str, np.ndarray | list]:
    views = draw_views(policy, ids(samples), np.full((samples, 2), side), DRAW, count, peers=peers or Peers(ids(samples))).values
    return to_numbers(views) | ({"partner": views.field("partner").to_pylist()} if policy.mixing else {})


def test_randaugments_ops_are_equally_likely_and_signs_fair():
    found = drawn(ViewPolicy(kinds=("randaugment",), randaugment_ops=2, randaugment_magnitude=9), 3000, 2)
    for step in (1, 2):
        assert chisquare(np.bincount(found[f"op_{step}"], minlength=len(RANDAUGMENT_OPS))).pvalue > 1e-3
        assert set(found[f"magnitude_{step}"].tolist()) == {18, 19} and abs((found[f"magnitude_{step}"] == 19).mean() - 0.5) < 0.02


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "resizemix"])
def test_a_partner_is_another_of_the_same_group_each_as_likely(kind):
    peers = Peers(ids(12), [row % 3 for row in range(12)])
    found = drawn(ViewPolicy(kinds=(kind,), mix=1.0), 12, 600, peers=peers)
    own = [row for row in range(12) for _ in range(600)]
    partners = [int(one[1:]) for one in found["partner"]]
    assert all(partner != row and partner % 3 == row % 3 for row, partner in zip(own, partners, strict=True))
    assert chisquare(np.bincount(partners, minlength=12)).pvalue > 1e-3


def test_whoever_has_no_peer_is_not_mixed():
    found = drawn(ViewPolicy(kinds=("mixup",), mix=1.0), 3, 4, peers=Peers(ids(3), ["train", "validation", "validation"]))
    assert found["mix"].tolist() == [0] * 4 + [1] * 8 and found["partner"][:4] == [None] * 4


def test_selfmix_takes_another_view_of_the_same_sample():
    found = drawn(ViewPolicy(kinds=("selfmix",), mix=1.0), 40, 5)
    assert set(found["partner"]) == {None} and (found["mix"] == MIXES.index("selfmix")).all()
    assert (found["partner_view"] != np.tile(np.arange(5), 40)).all() and set(found["partner_view"].tolist()) == set(range(5))
    assert not drawn(ViewPolicy(kinds=("selfmix",), mix=1.0), 40, 1)["mix"].any()


def test_mixup_is_mostly_the_sample_itself():
    weights = drawn(ViewPolicy(kinds=("mixup",), mix=1.0, mix_alpha=0.4), 2000, 1)["mix_weight"] / 65535
    own = np.random.default_rng(0).beta(0.4, 0.4, 200_000)
    assert weights.min() >= 0.5 and weights.mean() == pytest.approx(np.maximum(own, 1 - own).mean(), abs=0.01)


@pytest.mark.parametrize("kind", ["cutmix", "resizemix"])
def test_boxes_lie_inside_and_their_area_is_the_partners_share(kind):
    policy = ViewPolicy(kinds=(kind,), mix=1.0)
    views = draw_views(policy, ids(2000), np.full((2000, 2), 28), DRAW, 1, peers=Peers(ids(2000))).values
    y, x, h, w = (to_numbers(views)[f"mix_{name}"].astype(int) for name in "yxhw")
    assert (y + h <= 28).all() and (x + w <= 28).all()
    assert (anchor_weights(views, 28, 28) == 1 - h * w / 28**2).all()
    if kind == "resizemix":
        assert h.min() >= round(0.1 * 28) and h.max() <= round(0.8 * 28) and (h == w).all()


def test_erasing_is_as_often_as_asked_within_its_area_and_nothing_fits_in_a_pixel():
    found = drawn(ViewPolicy(kinds=("erase",), erase=0.25), 4000, 1, side=40)
    does = found["erase_h"] > 0
    assert does.mean() == pytest.approx(0.25, abs=0.03)
    area = (found["erase_h"].astype(int) * found["erase_w"])[does] / 1600
    assert area.min() > 0.01 and area.max() < 0.35
    assert (found["erase_y"].astype(int) + found["erase_h"] <= 40).all() and (found["erase_x"].astype(int) + found["erase_w"] <= 40).all()
    assert not drawn(ViewPolicy(kinds=("erase",), erase=1.0), 50, 1, side=1)["erase_h"].any()


def test_strength_grows_over_the_views():
    policy = ViewPolicy(kinds=("affine", "randaugment"), rotate_deg=20, randaugment_magnitude=30, strength=(0.0, 1.0))
    found = drawn(policy, 500, 5)
    rotate, magnitude = np.abs(found["rotate"].reshape(500, 5)).max(axis=0), found["magnitude_1"].reshape(500, 5).max(axis=0) // 2
    assert rotate[0] == 0 and (np.diff(rotate) > 0).all() and magnitude.tolist() == [0, 8, 15, 22, 30]
    assert view_contract(policy)["strength"] == [0.0, 1.0]


def test_full_strength_is_the_policy_to_the_last_bit():
    assert 1 - (1 - 0.08) != 0.08
    assert ViewPolicy(crop_scale=(0.08, 0.9)).at_strength(1.0) == ViewPolicy(crop_scale=(0.08, 0.9))


@given(st.sets(st.sampled_from(KINDS), min_size=1), st.integers(1, 29))
def test_any_policy_is_drawn_alike_in_any_batch_and_one_by_one(kinds, cut):
    policy, peers, size = ViewPolicy(kinds=tuple(kinds)), Peers(ids(30)), np.full((30, 2), 12)
    whole = draw_views(policy, ids(30), size, DRAW, 3, peers=peers)
    parts = [draw_views(policy, ids(30)[part], size[part], DRAW, 3, peers=peers) for part in (slice(cut), slice(cut, None))]
    assert whole.to_pylist() == [views for part in parts for views in part.to_pylist()]
    numbers = np.arange(30) % 3
    alone = draw_view(policy, ids(30), size, DRAW, numbers, 3, peers=peers)
    assert alone.to_pylist() == [views[number] for views, number in zip(whole.to_pylist(), numbers, strict=True)]
    assert whole.type == views_field(view_contract(policy)).type


def test_plain_views_of_any_type_change_nothing():
    policy = ViewPolicy(kinds=KINDS)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 9, 9), dtype=np.uint8)
    assert (replay(pixels, identity_views(np.full((3, 2), 9), policy.view_type), view_contract(policy)) == pixels).all()


def test_a_policy_that_mixes_wants_peers():
    with pytest.raises(ValueError, match="cutmix mix in other samples, and there are no peers to choose from"):
        draw_views(ViewPolicy(kinds=("cutmix",)), ["a"], np.array([[4, 4]]), DRAW, 1)


def test_another_kernel_is_one_line_that_says_how_much_differs(monkeypatch):
    field = views_field(view_contract(ViewPolicy(kinds=("crop", "randaugment"), side_px=16)))
    check_contract(field)
    monkeypatch.setattr(colour, "_equalized", lambda pixels: np.broadcast_to(colour.LEVELS, (*pixels.shape[:2], 256)))
    from stillroom import replay as module

    module._probes.cache_clear()
    try:
        with pytest.raises(StoreError, match=r"replays otherwise than when it was made \(probe .*; 4 of 64 probe views differ\); use the stillroom") as caught:
            check_contract(field)
    finally:
        monkeypatch.undo()
        module._probes.cache_clear()
    assert "\n" not in str(caught.value)
