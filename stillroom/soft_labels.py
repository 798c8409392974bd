"""Soft labels as they are stored: a teacher's probabilities in a few bytes, and back.

With few classes, or when all are kept, a label is dense float16. Otherwise it is the ids of the k most
probable classes, in no more bits than a class needs, and k + 1 codes of one byte: the logarithms of their
probabilities, by falling probability and each as the step down from the one before, and of the mass that
is left for all other classes. Steps are small numbers that Lance's zstd packs further. All k + 1 are scaled
together after decoding: codes alone round the sum above 1, nothing is left for the rest, and the distance
to the teacher jumps from 0.4 nats to 10 (measured; shared/algorithms/reinforcement.md, 3).
"""

import numpy as np
import pyarrow as pa

__all__ = ["DENSE_CLASSES", "MAX_CLASSES", "decode", "encode", "is_dense", "soft_label_type"]

# B = labels of a batch, C = classes, k = classes kept

DENSE_CLASSES = 16
MAX_CLASSES = 1 << 16
# A code c stands for 2^(-c / 8): 4.4 % off at most, so that a label loses less than 0.001 nats, down to
# 3e-10. There is no code for zero: what the teacher holds possible stays possible.
_STEPS = 8
# Labels of before had codes of their own, in steps of 12, and ids of 16 bits: stores still hold them.
_FIRST_STEPS = 12
_ZSTD = {"lance-encoding:compression": "zstd", "lance-encoding:compression-level": "9"}


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
    ids = pa.field("ids", pa.binary(_id_bytes(num_classes, top_k)))
    return pa.struct([ids, pa.field("codes", pa.binary(top_k + 1), metadata=_ZSTD)])


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
        codes_Bk1 = np.clip(np.rint(-np.log2(np.concatenate([kept_Bk, rest_B1], axis=1)) * _STEPS), 0, 255).astype(np.uint8)
    codes_Bk1[:, 1:top_k] = np.diff(codes_Bk1[:, :top_k], axis=1)
    return pa.StructArray.from_arrays([_binary(_packed(ids_Bk, num_classes)), _binary(codes_Bk1)], fields=list(kind))


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
    top_k = codes.type.byte_width - 1
    if ids.type.byte_width != _id_bytes(num_classes, top_k):
        raise ValueError(f"labels with ids in {ids.type.byte_width} bytes for {top_k} classes are not of {num_classes} classes")
    codes_Bk1 = _bytes(codes).astype(np.intp)
    np.cumsum(codes_Bk1[:, :top_k], axis=1, out=codes_Bk1[:, :top_k])
    return _unpacked(_bytes(ids), top_k, num_classes), np.exp2(-np.arange(256) / _STEPS)[codes_Bk1]


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


def _binary(bytes_Bn: np.ndarray) -> pa.FixedSizeBinaryArray:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(bytes_Bn.shape[1]), len(bytes_Bn), [None, pa.py_buffer(np.ascontiguousarray(bytes_Bn))])


def _bytes(binary: pa.FixedSizeBinaryArray) -> np.ndarray:
    """uint8 [B, bytes], without a copy."""
    width = binary.type.byte_width
    if not len(binary):
        return np.zeros((0, width), np.uint8)
    return np.frombuffer(binary.buffers()[1], np.uint8, len(binary) * width, binary.offset * width).reshape(len(binary), width)
