"""Soft labels: what decoding gives back, in nats against the teacher, and never an impossible class."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from stillroom.soft_labels import decode, encode, is_dense, soft_label_type


def teacher(rows: int, classes: int, sharpness: float, seed: int = 0) -> np.ndarray:
    return softmax(np.random.default_rng(seed).normal(size=(rows, classes)) * sharpness, axis=1)


def distance(probs_BC: np.ndarray, decoded_BC: np.ndarray) -> np.ndarray:
    """KL(teacher || decoded) in nats, infinite where the decoded label rules out what the teacher doesn't."""
    return rel_entr(probs_BC, decoded_BC.astype(float)).sum(axis=1)


def spread(probs_BC: np.ndarray, top_k: int) -> np.ndarray:
    """The k largest kept exactly, the rest shared equally: what an exact code would give."""
    ids = np.argsort(-probs_BC, axis=1, kind="stable")[:, :top_k]
    kept = np.take_along_axis(probs_BC, ids, 1)
    out = np.repeat((1 - kept.sum(axis=1, keepdims=True)) / (probs_BC.shape[1] - top_k), probs_BC.shape[1], axis=1)
    np.put_along_axis(out, ids, kept, 1)
    return out


@pytest.mark.parametrize("classes, top_k", [(2, 1), (10, 5), (16, 3), (30, None), (30, 30), (30, 99)])
def test_few_classes_are_stored_whole(classes, top_k):
    probs = teacher(200, classes, 1.5)
    labels = encode(probs, top_k)
    assert is_dense(classes, top_k) and labels.type == soft_label_type(classes, top_k) == pa.list_(pa.float16(), classes)
    decoded = decode(labels, classes)
    assert decoded.dtype == np.float32
    assert distance(probs, decoded).max() < 1e-6
    assert decoded.sum(axis=1) == pytest.approx(np.ones(200), abs=1e-6)


@given(st.integers(17, 300), st.integers(1, 16), st.floats(0, 12), st.integers(0, 2**32 - 1))
def test_coding_adds_no_more_than_a_thousandth_of_a_nat(classes, top_k, sharpness, seed):
    probs = teacher(20, classes, sharpness, seed)
    decoded = decode(encode(probs, top_k), classes)
    assert (decoded > 0).all()
    assert decoded.sum(axis=1) == pytest.approx(np.ones(20), abs=1e-5)
    # Below 2^-51 of the first there are no codes: an exact code would give the rest less, at no price in nats.
    assert (distance(probs, decoded) - distance(probs, np.maximum(spread(probs, top_k), 1e-12))).max() <= 1e-3


def test_order_and_ratios_are_kept():
    probs = teacher(300, 100, 2.0)
    decoded = decode(encode(probs, 5), 100)
    assert (decoded.argmax(axis=1) == probs.argmax(axis=1)).all()
    first_two = np.argsort(-probs, axis=1)[:, :2]
    ratio, stored = (np.divide(*np.take_along_axis(values, first_two, 1).T) for values in (probs, decoded))
    # Half a step of a fifth of an octave, and 3/8 of one where rounding begins.
    assert np.abs(np.log2(stored / ratio)).max() <= (1 / 2 + 3 / 8) / 5 + 1e-5


def test_what_is_left_is_shared_equally():
    probs = teacher(50, 40, 2.0)
    for row, order in zip(decode(encode(probs, 8), 40), np.argsort(-probs, axis=1), strict=True):
        assert len(set(row[order[8:]].tolist())) == 1


def test_the_rest_keeps_its_mass_where_each_rounded_alone_would_sum_above_one():
    # All three kept probabilities would round up: their sum is above 1, and 0 is left for 97 classes.
    kept = np.exp2(-np.array([5.49, 7.49, 13.49]) / 5)
    probs = np.full((1, 100), (1 - kept.sum()) / 97)
    probs[0, :3] = kept
    assert np.exp2(-np.rint(-np.log2(kept) * 5) / 5).sum() > 1 > kept.sum() > 0.9
    decoded = decode(encode(probs, 3), 100)
    assert decoded[0, 3:].sum() == pytest.approx(probs[0, 3:].sum(), rel=0.13)
    assert distance(probs, decoded)[0] < 1e-3


def test_rounding_begins_where_it_loses_least():
    # Six classes just below half a step from the first, six just above: from the first class on, these would be a whole step apart.
    probs = np.full((1, 30), 1e-9)
    probs[0, :13] = np.exp2(-np.array([0, *[0.49] * 6, *[0.51] * 6]) / 5)
    probs /= probs.sum()
    plain = np.where(np.arange(30) < 13, np.exp2(-np.array([0] * 7 + [1] * 23) / 5), probs[0] / probs[0, 0])
    assert distance(probs, plain[None] / plain.sum())[0] > 1.5e-3
    assert distance(probs, decode(encode(probs, 13), 30))[0] < 2e-4


def test_probabilities_that_sum_to_more_than_one_by_rounding_are_taken():
    probs = np.zeros((1, 50), np.float32)
    probs[0, :3] = [0.7, 0.2, 0.1001]
    decoded = decode(encode(probs, 3), 50)
    assert decoded[0, :3] == pytest.approx([0.7, 0.2, 0.1], rel=0.13)
    # Not the softmax of these numbers, which would be 0.02, 0.02 and so on.
    assert decoded[0, 3:].max() < 1e-6


def test_certainty_stays_near_certain():
    probs = np.eye(40)[[3, 39]]
    decoded = decode(encode(probs, 5), 40)
    assert (decoded.argmax(axis=1) == [3, 39]).all() and (decoded.max(axis=1) > 0.99999).all()


def test_ids_up_to_65535_survive():
    probs = np.zeros((2, 65536))
    probs[[0, 0, 1], [65535, 2049, 65534]] = [0.75, 0.25, 1.0]
    decoded = decode(encode(probs, 2), 65536)
    assert decoded[0].argsort()[-2:].tolist() == [2049, 65535] and decoded[1].argmax() == 65534


def test_equal_probabilities_are_kept_by_id():
    labels = encode(np.full((1, 20), 0.05), 4)
    # Five bits each, the highest first: 00000 00001 00010 00011.
    assert labels.field("ids").to_pylist() == [bytes([0b00000000, 0b01000100, 0b00110000])]


def test_labels_as_stores_held_them_first_still_decode():
    kind = pa.struct([pa.field("ids", pa.list_(pa.uint16(), 2)), pa.field("codes", pa.list_(pa.uint8(), 3))])
    labels = pa.array([{"ids": [29, 3], "codes": [12, 24, 24]}], kind)
    assert decode(labels, 30)[0, [29, 3, 0]] == pytest.approx([0.5, 0.25, 0.25 / 28], rel=1e-5)


def test_codes_are_the_steps_down_and_the_last_leads_to_a_class_of_the_rest():
    # An octave, an octave, and 3.8 of them (19 fifths) from 1/8 to one of fourteen that share 1/8.
    probs = np.full((1, 17), 1 / 8 / 14)
    probs[0, [16, 4, 11]] = [1 / 2, 1 / 4, 1 / 8]
    assert list(encode(probs, 3).field("codes").to_pylist()[0]) == [5, 5, 19]


def test_a_label_of_a_thousand_classes_takes_23_bytes_before_lance_packs_it():
    assert encode(teacher(3, 1000, 3.0), 10).nbytes == 3 * (13 + 10)


@given(st.integers(0, 29), st.sampled_from([10, 60]))
def test_a_slice_decodes_as_its_rows(start, classes):
    labels = encode(teacher(30, classes, 2.0), 4)
    part = labels.slice(start, 5)
    assert (decode(part, classes) == decode(labels, classes)[start : start + 5]).all()


def test_no_labels_decode_to_none():
    assert decode(encode(np.zeros((0, 60)), 4), 60).shape == (0, 60)


@pytest.mark.parametrize("row", [[0.5, 0.6], [0.5, float("nan")], [1.5, -0.5]])
def test_what_is_no_distribution_is_refused(row):
    with pytest.raises(ValueError, match="row 1 is no distribution"):
        encode(np.array([[0.5, 0.5], row]), 1)


def test_a_wrong_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="have 10 classes, not 12"):
        decode(encode(teacher(2, 10, 1.0), 3), 12)
    with pytest.raises(ValueError, match="not of 30 classes"):
        decode(encode(np.eye(40)[[39]], 3), 30)
    with pytest.raises(ValueError, match="1 to 65536 classes"):
        soft_label_type(65537, 5)
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        soft_label_type(100, 0)
