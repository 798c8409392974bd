"""Bytes of a stored view: record and label on disk, beside the layouts of ml-dr, FKD and TinyViT, on the same views and labels.

python benchmarks/view_bytes.py [--samples 1000] [--views 16]

Views as ImageNet+ RA/RE has them (crop of 500x375, flip, RandAugment N2 M9, erasing at a quarter) and the top 10 of 1,000 classes.
The labels are invented: a logit for each class and sample, more for its own, noise for each view; real teachers repeat themselves more.
"""

import argparse
import gzip
import io
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import lance
import numpy as np
import pyarrow as pa
import torch
from _others import machine, show
from scipy.special import rel_entr, softmax

from stillroom.draws import Draw
from stillroom.soft_labels import decode, encode, soft_label_type
from stillroom.views import ViewPolicy, draw_views, to_records, view_contract, views_field

CLASSES, TOP_K, SIZE = 1000, 10, (375, 500)
POLICY = ViewPolicy(kinds=("crop", "flip", "randaugment", "erase"), crop_scale=(0.08, 1.0), side_px=224)


def labels(samples: int, views: int) -> np.ndarray:
    """float32 [samples * views, CLASSES]."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (samples, CLASSES))
    logits[np.arange(samples), rng.integers(0, CLASSES, samples)] += 8
    return np.concatenate([softmax(one + rng.normal(0, 0.9, (views, CLASSES)), axis=1) for one in logits]).astype(np.float32)


def ours(structs: pa.ListArray, probs: np.ndarray, folder: Path) -> int:
    stored = structs.values
    whole = pa.StructArray.from_arrays(
        [*(stored.field(field.name) for field in stored.type), encode(probs, TOP_K)], names=[*(field.name for field in stored.type), "soft_label"]
    )
    label = {"num_classes": CLASSES, "top_k": TOP_K, "temperature": 1.0}
    field = views_field(view_contract(POLICY), soft_label_type(CLASSES, TOP_K), label)
    column = pa.ListArray.from_arrays(structs.offsets, whole).cast(field.type)
    lance.write_dataset(pa.Table.from_arrays([column], schema=pa.schema([field])), str(folder / "ours.lance"))
    return sum(file.stat().st_size for file in (folder / "ours.lance" / "data").iterdir())


def ml_dr(structs: pa.ListArray, kept: np.ndarray, ids: np.ndarray) -> int:
    """A file for each image, by torch.save, all of them gzipped: parameters in the order of the transforms, values and ids as lists."""
    views, count, at = to_records(structs.values), 0, 0
    whole = io.BytesIO()
    with gzip.GzipFile(fileobj=whole, mode="wb") as archive:
        for number, size in enumerate(structs.value_lengths().to_pylist()):
            entries = []
            for view in views[at : at + size]:
                crop = [view[f"crop_{name}"] for name in "yxhw"]
                ops = [(view[f"op_{step}"], (view[f"magnitude_{step}"] >> 1) * 0.03) for step in (1, 2)]
                erased = tuple(view[f"erase_{name}"] for name in "xyhw") if view["erase_h"] else None
                entries.append({"params": [crop, view["flip"], ops, erased], "prob": [kept[at].tolist(), ids[at].tolist()]})
                at += 1
            file = io.BytesIO()
            torch.save((number, entries), file, pickle_protocol=4)
            archive.write(file.getvalue())
            count += 1
    return len(whole.getvalue())


def fkd(structs: pa.ListArray, kept: np.ndarray, ids: np.ndarray, dtype: torch.dtype) -> int:
    """A file for each image: coordinates float32, flips, labels of k pairs in one array; no RandAugment, no erasing."""
    views, size = len(structs[0]), 0
    for row in range(len(structs)):
        part = slice(row * views, (row + 1) * views)
        file = io.BytesIO()
        pairs = torch.from_numpy(np.stack([ids[part].astype(np.float32), kept[part]], axis=1)).to(dtype)
        torch.save([torch.zeros(views, 4), torch.zeros(views, dtype=torch.bool), pairs], file)
        size += file.tell()
    return size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--views", type=int, default=16)
    args = parser.parse_args()
    probs = labels(args.samples, args.views)
    ids = np.argsort(-probs, axis=1, kind="stable")[:, :TOP_K]
    kept = np.take_along_axis(probs, ids, 1)
    structs = draw_views(POLICY, [f"s{row}" for row in range(args.samples)], np.tile(SIZE, (args.samples, 1)), Draw(0, "bench"), args.views)
    exact = np.repeat((1 - kept.sum(axis=1, keepdims=True)) / (CLASSES - TOP_K), CLASSES, axis=1)
    np.put_along_axis(exact, ids, kept, 1)
    encoded = encode(probs, TOP_K)
    added = (rel_entr(probs, decode(encoded, CLASSES)).sum(axis=1) - rel_entr(probs, exact).sum(axis=1)).mean()
    took = []
    for start in range(0, len(probs) - 256, 256):
        before = time.process_time()
        decode(encoded[start : start + 256], CLASSES)
        took.append((time.process_time() - before) / 256)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {
            "stillroom, in Lance": ours(structs, probs, Path(folder)),
            "ml-dr: torch.save an image, gzipped": ml_dr(structs, kept, ids),
            "FKD: torch.save an image, fp16 (ids above 2,048 break)": fkd(structs, kept, ids, torch.float16),
            "FKD: the same, fp32": fkd(structs, kept, ids, torch.float32),
            "TinyViT: seed, int16 ids, fp16 (payload alone)": len(probs) * (4 + 4 * TOP_K),
        }
    print(f"{machine()}; {args.samples:,} samples of {args.views} views; the teacher holds {kept.sum(axis=1).mean():.2f} in its top {TOP_K}")
    show(["layout", "bytes a view"], [[name, f"{size / len(probs):.1f}"] for name, size in sizes.items()])
    print(f"coding adds {added:.1e} nats to keeping the top {TOP_K} exactly; decoding takes {median(took) * 1e6:.1f} CPU µs a label, in batches of 256")


if __name__ == "__main__":
    sys.exit(main())
