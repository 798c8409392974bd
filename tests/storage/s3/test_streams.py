"""Streams from a bucket: blocks stay on the local disk, whatever happens on the way, and no more of them than told."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import stillroom
from stillroom.errors import UnreachableError
from tests.small import publish_small

ROWS = 1000  # 4 blocks


@pytest.fixture
def digits(s3: str) -> str:
    publish_small(s3, splits={"train": ROWS})
    return s3


def made(store: str, folder: Path, **how):
    return stillroom.open("digits", store).stream("train", batch_size=100, cache=folder, **how)


def ids(batches) -> list[str]:
    return [sample_id for batch in batches for sample_id in batch["sample_id"]]


def blocks(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.arrow"))


def test_a_second_epoch_is_read_from_the_disk(digits, proxy, tmp_path):
    batches = made(digits, tmp_path)
    expected = ids(made(digits, tmp_path / "none", cache_bytes=0))
    assert not (tmp_path / "none").exists()
    assert ids(batches) == expected and sorted(expected) == sorted(f"s{row}" for row in range(ROWS))
    assert len(blocks(tmp_path)) == 4
    asked = proxy.requests["GET"]
    assert len(set(ids(batches))) == ROWS and proxy.requests["GET"] == asked
    # Another process's stream of the same snapshot finds them too, and views read other columns.
    assert ids(made(digits, tmp_path)) == expected and len(blocks(tmp_path)) == 4
    assert ids(made(digits, tmp_path, views="stored")) == expected and len(blocks(tmp_path)) == 8


def test_the_folder_stays_within_its_limit_and_what_was_used_last_stays(digits, tmp_path):
    assert ids(made(digits, tmp_path))
    size = sum(path.stat().st_size for path in blocks(tmp_path))
    unused = blocks(tmp_path)[2]
    os.utime(unused, (0, 0))
    assert ids(made(digits, tmp_path, cache_bytes=size, columns=["split"]))  # other columns, so other blocks
    assert not unused.exists()
    batches = made(digits, tmp_path, cache_bytes=size // 2)
    for _ in range(3):
        assert len(set(ids(batches))) == ROWS
        assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= size // 2


def test_a_damaged_or_vanished_block_is_read_again(digits, tmp_path):
    batches = made(digits, tmp_path)
    expected = ids(batches)
    first, second, *_ = blocks(tmp_path)
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    batches.set_epoch(0)
    assert ids(batches) == expected and len(blocks(tmp_path)) == 4 and first.stat().st_size > 100


def test_processes_that_write_the_same_blocks_are_in_nobodys_way(digits, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: ids(made(digits, tmp_path)), range(4)))
    assert len({tuple(one) for one in found}) == 1
    assert len(blocks(tmp_path)) == len([path for path in tmp_path.rglob("*") if path.is_file()]) == 4


def test_a_bad_network_changes_no_batch(digits, proxy, plan, tmp_path):
    expected = ids(made(digits, tmp_path / "one"))
    proxy.follow(plan(seed=2, rate=0.3))
    assert ids(made(digits, tmp_path / "two")) == expected and proxy.suffered.total() > 0


def test_an_endpoint_that_is_gone_is_one_line(digits, proxy, monkeypatch, tmp_path):
    monkeypatch.setenv("OBJECT_STORE_CLIENT_MAX_RETRIES", "1")
    batches = made(digits, tmp_path)
    proxy.close()
    with pytest.raises(UnreachableError, match="can't be reached; check AWS_ENDPOINT and the network"):
        next(iter(batches))
