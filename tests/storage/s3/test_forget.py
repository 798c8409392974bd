"""forget in a bucket: no object has the row afterwards, and other snapshots are whole."""

import pytest

from stillroom.errors import StoreError
from stillroom.snapshots import open as open_snapshot
from stillroom.stores import Store
from storage.forget import forget
from storage.tombstones import read_tombstones
from storage.verify import verify


def test_of_a_row_in_a_bucket_nothing_stays(s3, publish, samples):
    store, table = Store(s3), samples({"train": 3, "test": 40})
    publish(s3, table.slice(0, 3))
    publish(s3, table.slice(20), "birds")
    found = forget(store, ["a/1.05.png"])
    assert (found.snapshots, found.receipts[0]["rows"]) == (["pets@1"], 1)
    left = [key for key in store.list("") if b"a/1.05.png" in (store.read(key) or b"")]
    assert left == [] and not [key for key in store.list("") if key.startswith(("pets.lance/", "forgotten/pending/"))]
    assert read_tombstones(store).knows("0001")
    with pytest.raises(StoreError, match="pets@1: was withdrawn"):
        open_snapshot("pets@1", store)
    assert open_snapshot("birds@1", store, verify=True).table().rows == 23
    assert (verify(store).sound, verify(store).findings) == (True, [])
