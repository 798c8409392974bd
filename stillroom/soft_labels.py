"""Soft labels as they are stored: a teacher's probabilities in a few bytes, and back.

With few classes, or when all are kept, a label is dense float16. Otherwise it is the ids of the k most
probable classes and k + 1 codes of one byte: the logarithms of their probabilities, and of the mass that
is left for all other classes. All k + 1 are scaled together after decoding: codes alone round the sum
above 1, nothing is left for the rest, and the distance to the teacher jumps from 0.4 nats to 10
(measured; shared/algorithms/reinforcement.md, 3).
"""

import numpy as np
import pyarrow as pa

__all__ = ["DENSE_CLASSES", "MAX_CLASSES", "decode", "encode", "is_dense", "soft_label_type"]

# B = labels of a batch, C = classes, k = classes kept

DENSE_CLASSES = 16
MAX_CLASSES = 1 << 16
# A code c stands for 2^(-c / 12): steps of 6 %, so 3 % off at most, down to 4e-7. There is no code for
# zero: what the teacher holds possible stays possible.
_STEPS = 12
_PROBABILITIES = np.exp2(-np.arange(256) / _STEPS)


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
    return pa.struct([pa.field("ids", pa.list_(pa.uint16(), top_k)), pa.field("codes", pa.list_(pa.uint8(), top_k + 1))])


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
    with np.errstate(divide="ignore"):
        codes = np.rint(-np.log2(np.concatenate([kept_Bk, rest_B1], axis=1)) * _STEPS)
    codes_Bk1 = np.clip(codes, 0, 255).astype(np.uint8)
    parts = [_fixed(ids_Bk.astype(np.uint16), kind.field(0).type), _fixed(codes_Bk1, kind.field(1).type)]
    return pa.StructArray.from_arrays(parts, fields=list(kind))


def decode(labels: pa.Array, num_classes: int) -> np.ndarray:
    """Decode B labels to probabilities, float32 [B, C], each row summing to 1; the mass left is shared by the classes not kept.

    Raises:
        ValueError: the labels are of another number of classes.
    """
    count = len(labels)
    if pa.types.is_fixed_size_list(labels.type):
        if labels.type.list_size != num_classes:
            raise ValueError(f"labels have {labels.type.list_size} classes, not {num_classes}")
        probs_BC = _numbers(labels).astype(np.float32)
        return probs_BC / probs_BC.sum(axis=1, keepdims=True, dtype=np.float32)
    ids_Bk, codes_Bk1 = _numbers(labels.field(0)).astype(np.intp), _numbers(labels.field(1))
    top_k = ids_Bk.shape[1]
    if top_k >= num_classes or (count and ids_Bk.max() >= num_classes):
        raise ValueError(f"labels keep {top_k} classes with ids up to {ids_Bk.max(initial=0)}: not of {num_classes} classes")
    # Ids stand by falling probability: a millionth less each keeps the first the first where codes are equal.
    mass_Bk1 = _PROBABILITIES[codes_Bk1] * (1 - 2.0**-20 * np.arange(top_k + 1))
    mass_Bk1 /= mass_Bk1.sum(axis=1, keepdims=True)
    probs_BC = np.empty((count, num_classes), np.float32)
    probs_BC[:] = mass_Bk1[:, -1:] / (num_classes - top_k)
    np.put_along_axis(probs_BC, ids_Bk, mass_Bk1[:, :-1].astype(np.float32), 1)
    return probs_BC


def _fixed(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).ravel(), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def _numbers(lists: pa.FixedSizeListArray) -> np.ndarray:
    return lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), lists.type.list_size)
