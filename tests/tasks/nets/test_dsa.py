"""DSA: the same numbers give the same images, each operation does what it says, and gradients pass through it."""

import pytest
import torch

from tasks.nets.dsa import CUTOUT, DSA_OPS, Dsa, apply_dsa, draw_dsa

# B = images, C H W = image


def images(count: int = 4, channels: int = 3, side_px: int = 16) -> torch.Tensor:
    return torch.randn(count, channels, side_px, side_px, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def moved(op, images_BCHW: torch.Tensor, numbers: list[list[float]]) -> torch.Tensor:
    return apply_dsa(images_BCHW, Dsa(op, torch.tensor(numbers, dtype=torch.float64)))


@pytest.mark.parametrize("op", DSA_OPS)
def test_a_draw_is_replayed_exactly_and_gradients_agree_with_differences(op):
    images_BCHW = images(2, 2, 8).requires_grad_()
    drawn = draw_dsa([op], 5, 2)
    assert torch.equal(apply_dsa(images_BCHW, drawn), apply_dsa(images_BCHW, draw_dsa([op], 5, 2)))
    assert torch.autograd.gradcheck(lambda images_BCHW: apply_dsa(images_BCHW, drawn), images_BCHW)


@pytest.mark.parametrize("op", DSA_OPS)
def test_an_image_moves_alone_or_as_its_siblings_do(op):
    images_BCHW = images()
    numbers = torch.rand(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    together = apply_dsa(images_BCHW, Dsa(op, numbers))
    alone = torch.cat([apply_dsa(images_BCHW[row : row + 1], Dsa(op, numbers[row : row + 1])) for row in range(4)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)
    siamese = apply_dsa(images_BCHW[:1].expand(4, -1, -1, -1), Dsa(op, numbers[:1]))
    assert torch.equal(siamese, siamese[:1].expand_as(siamese))


def test_a_shift_moves_by_whole_pixels_and_brings_in_zeros():
    images_BCHW = images(1, 1, 16)  # an eighth: two pixels to either side
    assert torch.equal(moved("shift", images_BCHW, [[0.5, 0.5, 0]]), images_BCHW)
    shifted = moved("shift", images_BCHW, [[0.0, 0.999, 0]])
    assert torch.equal(shifted[..., 2:, :-2], images_BCHW[..., :-2, 2:])
    assert not shifted[..., :2, :].any()
    assert not shifted[..., -2:].any()


def test_a_flip_swaps_left_and_right_or_nothing():
    images_BCHW = images(2)
    flipped = moved("flip", images_BCHW, [[0.49, 0, 0], [0.5, 0, 0]])
    assert torch.equal(flipped[0], images_BCHW[0].flip(2))
    assert torch.equal(flipped[1], images_BCHW[1])


def test_a_cutout_takes_half_the_side_where_it_lies_inside():
    cut = moved("cutout", torch.ones(2, 1, 16, 16), [[0.5, 0.5, 0], [0.0, 0.0, 0]])
    assert (cut == 0).sum((1, 2, 3)).tolist() == [(16 * CUTOUT) ** 2, (16 * CUTOUT / 2) ** 2]  # at a corner a quarter of it


def test_scale_rotate_and_colour_leave_an_image_in_the_middle_of_their_range():
    images_BCHW = images(1)
    middle = (1 - 1 / 1.2) / (1.2 - 1 / 1.2)  # where the factor is 1
    assert torch.allclose(moved("scale", images_BCHW, [[middle, middle, 0]]), images_BCHW)
    assert torch.allclose(moved("rotate", images_BCHW, [[0.5, 0, 0]]), images_BCHW)
    assert torch.allclose(moved("color", images_BCHW, [[0.5, 0.5, 0.5]]), images_BCHW)


def test_a_quarter_of_a_turn_by_hand():
    """Fifteen degrees to one side is where a point lands by the rotation matrix."""
    image = torch.zeros(1, 1, 33, 33)
    image[0, 0, 16, 26] = 1  # ten pixels right of the centre
    turned = moved("rotate", image, [[0.999999, 0, 0]])[0, 0]
    row, column = divmod(int(turned.argmax()), 33)
    assert (row - 16, column - 16) in {(3, 10), (-3, 10)}  # 10 sin 15 = 2.6, 10 cos 15 = 9.7


def test_without_operations_nothing_happens():
    images_BCHW = images(1)
    assert apply_dsa(images_BCHW, draw_dsa([], 1, 1)) is images_BCHW
