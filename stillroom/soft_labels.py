"""Soft labels as they are stored: a teacher's probabilities in a few bytes, and back.

With few classes, or when all are kept, a label is dense float16. Otherwise it is the ids of the k most
probable classes, in no more bits than a class needs, and k codes of one byte: how far the probability falls
from each of them to the next, and from the last to a class of the rest, which share equally what is left.
These are ratios; that all is 1 together says how large the first one is. So the rest always has its mass:
probabilities that are rounded one by one can sum above 1, nothing is left for the rest, and the distance to
the teacher jumps from 0.4 nats to 10 (measured; shared/algorithms/reinforcement.md, 3).
"""

import numpy as np
import pyarrow as pa

from stillroom.packed import from_bytes, packed_field, to_bytes

__all__ = ["DENSE_CLASSES", "MAX_CLASSES", "decode", "encode", "is_dense", "soft_label_type"]

# B = labels of a batch, C = classes, k = classes kept, P = phases

DENSE_CLASSES = 16
MAX_CLASSES = 1 << 16
# Five codes to an octave, down to 2^-51 of the most probable class. There is no code for zero: what the teacher
# holds possible stays possible.
_STEPS = 5
_LOWEST = 255
_LEVELS = np.exp2(-np.arange(_LOWEST + 1) / _STEPS)
# Only ratios are stored, so rounding may begin anywhere between two steps, and the best of four beginnings is
# taken. On average over these, no teacher's squared error is above 0.094 of a squared step: the best one costs
# at most 0.0009 nats, where a single beginning would cost up to 0.0024.
_PHASES = np.array([-3, -1, 1, 3]) / 8
# Labels of before had codes of their own, in steps of 12, and ids of 16 bits: stores still hold them.
_FIRST_STEPS = 12


def is_dense(num_classes: int, top_k: int | None) -> bool:
    """Whether labels of `num_classes` classes are stored whole: up to 16 classes top-k saves nothing."""
    return num_classes <= DENSE_CLASSES or top_k is None or top_k >= num_classes


def soft_label_type(num_classes: int, top_k: int | None) -> pa.DataType:
    """The Arrow type of a soft label; None for `top_k` keeps all classes.

    Raises:
        ValueError: fewer than 1 or more than 65,536 classes, or `top_k` below 1.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"soft labels have 1 to {MAX_CLASSES} classes, not {num_classes}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    if top_k is None or is_dense(num_classes, top_k):
        return pa.list_(pa.float16(), num_classes)
    # Ids are as good as random: zstd would only make them longer.
    return pa.struct([pa.field("ids", pa.binary(_id_bytes(num_classes, top_k))), packed_field("codes", top_k)])


def encode(probs_BC: np.ndarray, top_k: int | None) -> pa.Array:
    """Encode probabilities.

    Args:
        probs_BC: float [B, C], each row finite, not negative, summing to 1 (to 1e-3: float16 teachers are let in).
        top_k: how many classes to keep; None keeps all.

    Returns:
        B labels of `soft_label_type(C, top_k)`. Kept classes stand by falling probability, equal ones by id.

    Raises:
        ValueError: a row is no distribution, named by its position.
    """
    probs_BC = np.asarray(probs_BC, np.float64)
    num_classes = probs_BC.shape[1]
    kind = soft_label_type(num_classes, top_k)
    sums = probs_BC.sum(axis=1)
    wrong = ~(np.abs(sums - 1) <= 1e-3) | ~(probs_BC >= 0).all(axis=1)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"row {at} is no distribution: its numbers sum to {sums[at]:.6g}, the least is {probs_BC[at].min():.6g}")
    probs_BC = probs_BC / sums[:, None]
    if is_dense(num_classes, top_k):
        return _fixed(probs_BC.astype(np.float16), kind)
    ids_Bk = np.argsort(-probs_BC, axis=1, kind="stable")[:, :top_k]
    kept_Bk = np.take_along_axis(probs_BC, ids_Bk, 1)
    rest_B1 = np.maximum(1 - kept_Bk.sum(axis=1, keepdims=True), 0)
    codes_Bk = _codes(kept_Bk, rest_B1, num_classes - kept_Bk.shape[1])
    return pa.StructArray.from_arrays([from_bytes(_packed(ids_Bk, num_classes)), from_bytes(codes_Bk)], fields=list(kind))


def decode(labels: pa.Array, num_classes: int) -> np.ndarray:
    """Decode B labels to probabilities, float32 [B, C], each row summing to 1; the mass left is shared by the classes not kept.

    Raises:
        ValueError: the labels are of another number of classes.
    """
    if pa.types.is_fixed_size_list(labels.type):
        if labels.type.list_size != num_classes:
            raise ValueError(f"labels have {labels.type.list_size} classes, not {num_classes}")
        probs_BC = _numbers(labels).astype(np.float32)
        return probs_BC / probs_BC.sum(axis=1, keepdims=True, dtype=np.float32)
    ids_Bk, mass_Bk1 = _kept(labels, num_classes)
    top_k = ids_Bk.shape[1]
    if top_k >= num_classes or ids_Bk.max(initial=0) >= num_classes:
        raise ValueError(f"labels keep {top_k} classes with ids up to {ids_Bk.max(initial=0)}: not of {num_classes} classes")
    # Classes stand by falling probability: a millionth less each keeps the first the first where codes are equal.
    mass_Bk1 = mass_Bk1 * (1 - 2.0**-20 * np.arange(top_k + 1))
    mass_Bk1 /= mass_Bk1.sum(axis=1, keepdims=True)
    probs_BC = np.empty((len(labels), num_classes), np.float32)
    probs_BC[:] = (mass_Bk1[:, -1:] / (num_classes - top_k)).astype(np.float32)
    probs_BC[np.arange(len(labels))[:, None], ids_Bk] = mass_Bk1[:, :-1]
    return probs_BC


def _kept(labels: pa.StructArray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The classes that B labels keep, [B, k], and their mass before scaling, with that of the rest, [B, k + 1]."""
    ids, codes = labels.field("ids"), labels.field("codes")
    if not pa.types.is_fixed_size_binary(ids.type):
        return _numbers(ids).astype(np.intp), np.exp2(-np.arange(256) / _FIRST_STEPS)[_numbers(codes)]
    top_k = codes.type.byte_width
    if ids.type.byte_width != _id_bytes(num_classes, top_k):
        raise ValueError(f"labels with ids in {ids.type.byte_width} bytes for {top_k} classes are not of {num_classes} classes")
    mass_Bk1 = np.ones((len(labels), top_k + 1))
    mass_Bk1[:, 1:] = _LEVELS[np.minimum(np.cumsum(to_bytes(codes), axis=1, dtype=np.intp), _LOWEST)]
    mass_Bk1[:, -1] *= num_classes - top_k
    return _unpacked(to_bytes(ids), top_k, num_classes), mass_Bk1


def _codes(kept_Bk: np.ndarray, rest_B1: np.ndarray, others: int) -> np.ndarray:
    """The steps down from class to class, and to one of `others` that share the rest; uint8 [B, k]. Those that lose the least nats."""
    # No class of the rest has more than the last one kept, but for rounding.
    shares_Bk1 = np.concatenate([kept_Bk, np.minimum(rest_B1 / others, kept_Bk[:, -1:])], axis=1)
    with np.errstate(divide="ignore"):
        below_Bk1 = np.log2(shares_Bk1[:, :1] / shares_Bk1) * _STEPS
    levels_PBk1 = np.minimum(np.rint(below_Bk1 + _PHASES[:, None, None]), _LOWEST).astype(np.intp)
    # KL to the teacher, less what is the same for all phases: log(sum of m) - sum of p log m, for m not yet scaled.
    mass_PBk1 = _LEVELS[levels_PBk1]
    mass_PBk1[..., -1] *= others
    whole_Bk1 = np.concatenate([kept_Bk, rest_B1], axis=1)
    lost_PB = np.log(mass_PBk1.sum(axis=2)) + np.log(2) / _STEPS * (whole_Bk1 * levels_PBk1).sum(axis=2)
    best_Bk1 = levels_PBk1[lost_PB.argmin(axis=0), np.arange(len(kept_Bk))]
    return np.diff(best_Bk1, axis=1).astype(np.uint8)


def _id_bits(num_classes: int) -> int:
    return max(1, (num_classes - 1).bit_length())


def _id_bytes(num_classes: int, top_k: int) -> int:
    return -(-top_k * _id_bits(num_classes) // 8)


def _packed(ids_Bk: np.ndarray, num_classes: int) -> np.ndarray:
    """Ids one after another, each in as many bits as a class needs, the highest bit first; uint8 [B, bytes]."""
    (count, top_k), bits = ids_Bk.shape, _id_bits(num_classes)
    bits_Bkb = ids_Bk[:, :, None] >> np.arange(bits)[::-1] & 1
    return np.packbits(bits_Bkb.astype(np.uint8).reshape(count, top_k * bits), axis=1)


def _unpacked(bytes_Bn: np.ndarray, top_k: int, num_classes: int) -> np.ndarray:
    bits = _id_bits(num_classes)
    bits_Bkb = np.unpackbits(bytes_Bn, axis=1, count=top_k * bits).reshape(len(bytes_Bn), top_k, bits)
    # In float32 the sum is a matrix product, and exact.
    return (bits_Bkb.astype(np.float32) @ np.exp2(np.arange(bits)[::-1]).astype(np.float32)).astype(np.intp)


def _fixed(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).ravel(), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def _numbers(lists: pa.FixedSizeListArray) -> np.ndarray:
    return lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), lists.type.list_size)
