"""Draws: keyed by seed, operator, sample id and draw, and by nothing else."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from stillroom.draws import Draw

IDS = st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=20, unique=True)


@given(IDS, st.data())
def test_a_row_does_not_depend_on_its_batch(ids, data):
    cut = data.draw(st.integers(0, len(ids)))
    draw = Draw(3, "filter.x")
    whole = draw.uniform(ids, 4)
    assert np.array_equal(whole, np.concatenate([draw.uniform(ids[:cut], 4), draw.uniform(ids[cut:], 4)]))


@given(IDS)
def test_order_does_not_depend_on_the_order_given(ids):
    draw = Draw(3, "filter.x")
    back = list(reversed(ids))
    assert [ids[i] for i in draw.order(ids)] == [back[i] for i in draw.order(back)]


def test_every_part_of_the_key_counts():
    keys = [
        Draw(1, "a").uniform(["r"], 1),
        Draw(2, "a").uniform(["r"], 1),
        Draw(1, "b").uniform(["r"], 1),
        Draw(1, "a").uniform(["s"], 1),
        Draw(1, "a").uniform(["r"], 1, draw=1),
    ]
    assert len({float(key[0, 0]) for key in keys}) == 5


def test_seed_and_draw_are_not_added_up():
    # seed 0 at epoch 1 must not equal seed 1 at epoch 0
    assert Draw(0, "a").integer("r", 1) != Draw(1, "a").integer("r", 0)


def test_numbers_are_uniform():
    numbers = Draw(0, "test").uniform([str(n) for n in range(5000)], 2).ravel()
    assert numbers.min() >= 0 and numbers.max() < 1
    assert kstest(numbers, "uniform").pvalue > 0.01


def test_the_numbers_are_these_for_ever():
    assert Draw(7, "table.split").uniform(["sample"], 2).tolist() == [[0.30509980380617907, 0.6880325753622619]]
