"""gc in a bucket: the same objects go as in a folder, and what stays is whole."""

import pyarrow as pa
import pytest

from stillroom.errors import StoreError
from stillroom.snapshots import open as open_snapshot
from stillroom.stores import Store
from storage.commits import write_batches
from storage.gc import Policy, gc
from storage.verify import verify

X = pa.schema([("sample_id", pa.string()), ("x", pa.int64())])


def fill(store: Store, publish) -> None:
    for label in (1, 2, 3):
        publish(store.uri, pa.table({"sample_id": ["a"], "label": [label], "split": ["train"]}))
    write_batches(store, "stages/pets.core", [pa.record_batch([["a"], [1]], schema=X)], X)


def test_gc_leaves_the_same_in_a_bucket_as_in_a_folder(s3, publish, tmp_path):
    bucket, folder = Store(s3), Store(tmp_path / "store")
    for store in (bucket, folder):
        fill(store, publish)
    planned = gc(bucket, Policy(keep_last=1), dry_run=True)
    report = gc(bucket, Policy(keep_last=1))
    gc(folder, Policy(keep_last=1))
    assert report.removed == planned.removed and report.dropped == ["pets@1", "pets@2"]
    assert kinds(bucket) == kinds(folder)
    assert (verify(bucket).sound, verify(bucket).findings) == (True, [])
    assert open_snapshot("pets@3", bucket, verify=True).table("train").frame()["label"].to_list() == [3]
    with pytest.raises(StoreError, match="pets@1: was withdrawn"):
        open_snapshot("pets@1", bucket)
    assert gc(bucket, Policy(keep_last=1)).removed == []


def kinds(store: Store) -> dict[str, int]:
    """How many objects there are in each folder, without the hint that Lance writes on a disk only."""
    folders = [key.rpartition("/")[0] for key in store.sizes("") if "hint" not in key]
    return {folder: folders.count(folder) for folder in folders}
