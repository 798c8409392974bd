"""Shapes: what stillroom writes passes, and what would lead a reader astray doesn't, whatever its checksum says."""

import pytest

from stillroom.errors import StoreError
from stillroom.shapes import wrong_shape
from stillroom.stores import Store

TABLE = {"name": "pets", "version": 2, "rows": 3, "fingerprint": "ab", "digest": "cd", "columns": {"x": "ef"}}
STAGE = {
    "name": "raw",
    "op": "ingest.digits",
    "shape": "source",
    "gives": "samples",
    "hidden": False,
    "fingerprint": "ab",
    "inputs": {},
    "table": TABLE,
    "removed": None,
}
MANIFEST = {
    "name": "pets", "number": 1, "created": "2026-01-01T00:00:00+00:00", "digest": "cd", "rows": 3, "trial": False, "splits": {"train": 3},
    "table": TABLE, "files": {"pets.lance/data/1.lance": [7, "aa"]}, "stages": [STAGE], "anything": [1],
}  # fmt: skip


def test_a_manifest_passes():
    assert wrong_shape("snapshots/pets/1.json", MANIFEST) is None
    assert wrong_shape("of/nobody.json", [1]) is None


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"table": TABLE | {"name": "../../home"}}, "table.name"),
        ({"table": TABLE | {"name": "/etc"}}, "table.name"),
        ({"table": TABLE | {"version": "2"}}, "table.version"),
        ({"table": []}, "table"),
        ({"files": {"../../x": [1, "aa"]}}, "files"),
        ({"files": {"x": [1]}}, "files"),
        ({"created": "2026-01-01"}, "created"),
        ({"rows": True}, "rows"),
        ({"splits": {"train": -1}}, "splits.train"),
        ({"stages": [STAGE, {"name": "x"}]}, "stages[1].op, which is missing"),
        ({"name": "../x"}, "name"),
    ],
)
def test_the_first_place_that_is_wrong_is_named(change, wrong):
    assert wrong_shape("snapshots/pets/1.json", MANIFEST | change) == wrong


@pytest.mark.parametrize(
    ("key", "value", "wrong"),
    [
        ("records/ab.json", {"fingerprint": "ab", "more": 1}, "stage, which is missing"),
        (
            "runs/1.json",
            {"id": "1", "recipe": "r", "started": "2026-01-01T00:00:00+00:00", "state": "Running", "command": "it's", "fingerprints": {}},
            "command",
        ),
        ("leases/gc.1.json", {"holder": {}, "beat": "records/ab.json"}, "beat"),  # it would be removed
        ("promoted/pets/1.json", {"k": 1, "name": "pets", "number": None, "standing": ["1"]}, "standing[0]"),
    ],
)
def test_so_it_is_for_other_objects(key, value, wrong):
    assert wrong_shape(key, value) == wrong


def test_a_store_refuses_it_in_a_line(store):
    home = Store(store)
    home.put_json("snapshots/pets/1.json", MANIFEST | {"rows": None})
    with pytest.raises(StoreError, match="'snapshots/pets/1.json': is damaged: it isn't what stillroom writes there, by rows; bring it back"):
        home.read_json("snapshots/pets/1.json")
