"""The trainer's side: the view of an epoch, an order that workers can't change, and a fork that is refused."""

import multiprocessing
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from stillroom.datasets import EpochOrder, Place, TorchSplit, loader
from stillroom.draws import Draw
from stillroom.errors import InputError, StoreError
from stillroom.fields import image_field, label_field, vector_field
from stillroom.images import encode_png
from stillroom.soft_labels import decode, encode, soft_label_type
from stillroom.tables import MemoryTable
from stillroom.views import ViewPolicy, draw_views, replay, view_contract, views_field

ROWS, VIEWS, CLASSES = 23, 4, 3
POLICY = ViewPolicy(side_px=6)
PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, 1, 8, 8), dtype=np.uint8)
PROBS = np.random.default_rng(1).dirichlet(np.ones(CLASSES), ROWS * VIEWS)


def split_with_views(without: tuple[int, ...] = ()) -> MemoryTable:
    """Samples with stored views, apart from the rows named, which have none."""
    drawn = draw_views(POLICY, [f"s{row}" for row in range(ROWS)], np.tile([8, 8], (ROWS, 1)), Draw(0, "test"), VIEWS)
    field = views_field(view_contract(POLICY), soft_label_type(CLASSES, 2), {"num_classes": CLASSES, "top_k": 2, "temperature": 1.0})
    structs = pa.StructArray.from_arrays([*drawn.values.flatten(), encode(PROBS, 2)], fields=list(field.type.value_type))
    lists = pa.ListArray.from_arrays(drawn.offsets, structs).to_pylist()
    views = pa.array([None if row in without else lists[row] for row in range(ROWS)], field.type)
    fields = [pa.field("sample_id", pa.string()), image_field(), label_field(["a", "b", "c"]), field]
    images = [encode_png(pixels.transpose(1, 2, 0)) for pixels in PIXELS]
    columns = [[f"s{row}" for row in range(ROWS)], images, [row % CLASSES for row in range(ROWS)], views]
    return MemoryTable(pa.table(columns, schema=pa.schema(fields)))


def which_view(item: dict, row: int) -> int:
    """The stored view whose soft label an item has; checks that its pixels are that view's."""
    labels = decode(encode(PROBS[row * VIEWS : (row + 1) * VIEWS], 2), CLASSES)
    view = int(np.flatnonzero((labels == item["soft_label"].numpy()).all(axis=1))[0])
    record = split_with_views().table["views"][row].values.slice(view, 1)
    assert (item["image"].numpy() == replay(PIXELS[row : row + 1], record, view_contract(POLICY))[0]).all()
    return view


def test_an_item_is_what_it_says():
    item = TorchSplit(split_with_views(), views="stored")[5]
    assert (item["sample_id"], item["label"], item["label"].dtype) == ("s5", 2, torch.int64)
    assert item["image"].shape == (1, 6, 6) and item["image"].dtype == torch.float32
    assert item["image"].min() >= 0 and 0.5 < item["image"].max() <= 1
    assert item["soft_label"].dtype == torch.float32 and item["soft_label"].sum() == pytest.approx(1)


def test_plain_images_come_as_they_are():
    item = TorchSplit(split_with_views(), pixels="uint8")[5]
    assert sorted(item) == ["image", "label", "sample_id"] and (item["image"].numpy() == PIXELS[5]).all()


def test_each_view_comes_once_before_any_comes_again():
    split, shown = TorchSplit(split_with_views(), views="stored", seed=3, pixels="uint8"), []
    for epoch in range(2 * VIEWS):
        split.set_epoch(epoch)
        shown.append([which_view(split[row], row) for row in range(6)])
    assert all(sorted(column) == list(range(VIEWS)) for column in zip(*shown[:VIEWS], strict=True))
    assert shown[:VIEWS] == shown[VIEWS:]
    assert len(set(shown[0])) > 1  # not all samples their first view at once


def test_a_batch_is_its_samples():
    split = TorchSplit(split_with_views(), views="stored")
    for together, row in zip(split.__getitems__([Place(2, 7), Place(2, 0), Place(2, 7)]), (7, 0, 7), strict=True):
        alone = split[Place(2, row)]
        assert (together["image"] == alone["image"]).all() and (together["soft_label"] == alone["soft_label"]).all()


def test_a_row_without_views_is_plain_and_sure_of_its_label():
    split = TorchSplit(split_with_views(without=(0, 4)), views="stored")
    plain, stored, other = split.__getitems__([4, 5, 0])
    assert plain["soft_label"].tolist() == [0, 1, 0] and other["soft_label"].tolist() == [1, 0, 0]
    assert plain["image"].shape == stored["image"].shape
    assert (stored["image"] == TorchSplit(split_with_views(), views="stored")[5]["image"]).all()


def test_iterating_a_split_ends():
    assert [item["sample_id"] for item in TorchSplit(split_with_views())] == [f"s{row}" for row in range(ROWS)]


def epochs_of(batches: DataLoader, epochs: int) -> list[list[str]]:
    return [[sample_id for batch in batches for sample_id in batch["sample_id"]] for _ in range(epochs)]


def test_order_depends_on_seed_and_epoch_alone():
    split = TorchSplit(split_with_views(), seed=5)
    first, second = epochs_of(loader(split, batch_size=4), 2)
    assert sorted(first) == sorted(second) == sorted(f"s{row}" for row in range(ROWS)) and first != second
    assert epochs_of(loader(split, batch_size=7), 2) == [first, second]
    assert epochs_of(loader(TorchSplit(split_with_views(), seed=6), batch_size=4), 1) != [first]
    again = loader(split, batch_size=4)
    again.sampler.set_epoch(1)
    assert epochs_of(again, 1) == [second]
    assert epochs_of(loader(split, batch_size=4, shuffle=False), 1) == [[f"s{row}" for row in range(ROWS)]]


def test_seed_0_at_epoch_1_is_not_seed_1_at_epoch_0():
    one, other = (list(EpochOrder(50, seed=seed, shuffle=True, epoch=epoch)) for seed, epoch in ((0, 1), (1, 0)))
    assert [place.row for place in one] != [place.row for place in other]


def test_workers_from_a_fork_server_give_the_same_batches():
    # The parent has read, so that forked workers would be refused; these keep their epoch over passes.
    split = TorchSplit(split_with_views(), views="stored", seed=5)
    split[0]
    here, there = loader(split, batch_size=6), loader(split, batch_size=6, num_workers=2)
    for _ in range(3):
        for expected, batch in zip(here, there, strict=True):
            assert batch["sample_id"] == expected["sample_id"]
            assert torch.equal(batch["image"], expected["image"]) and torch.equal(batch["soft_label"], expected["soft_label"])


def test_a_fork_after_a_read_raises_at_once_and_says_the_way_out():
    split = TorchSplit(split_with_views())
    split[0]
    started = time.monotonic()
    with pytest.raises(Exception, match=r"split: was read before this process was forked.*use `snapshot.loader\(…\)`.*forkserver"):
        next(iter(DataLoader(split, batch_size=2, num_workers=1, multiprocessing_context="fork")))
    assert time.monotonic() - started < 10  # 0.1 s on an idle machine; what matters is that it doesn't hang


def test_a_split_travels_by_pickle_to_a_spawned_process():
    split = TorchSplit(split_with_views(), views="stored")
    expected = split[3]
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        item = pool.apply(split.__getitem__, (3,))
    assert torch.equal(item["image"], expected["image"])


def test_views_of_other_kernels_are_refused_at_the_first_read(put_kernel):
    split = TorchSplit(split_with_views(), views="stored")
    put_kernel("_fixed", lambda values: np.floor(values * 65536).astype(np.int32))
    with pytest.raises(StoreError, match="replays otherwise"):
        split[0]


def test_a_split_without_views_says_so():
    table = MemoryTable(split_with_views().table.drop_columns(["views"]))
    assert "soft_label" not in TorchSplit(table)[0]
    with pytest.raises(StoreError, match="views: are not in this split; pass views=None"):
        TorchSplit(table, views="stored")[0]
    with pytest.raises(InputError, match="views='store'"):
        TorchSplit(table, views="store")


def distilled_split(without: tuple[int, ...] = ()) -> MemoryTable:
    """Four images of 2x2 and two classes, as distill.tesla gives them; rows of `without` are real ones from a mix."""
    told = '{"augment":[],"labels":"soft","learning_rate":0.03,"mean":[0.5],"net":"mlp","std":[0.25]}'
    rows = [
        {
            "sample_id": f"s{row}",
            "image": encode_png(np.full((2, 2, 1), 10 * row, np.uint8)),
            "label": row % 2,
            "pixels": None if row in without else [row + 0.25, 0.0, -3.0, 7.5],
            "soft_label": None if row in without else [0.75, 0.25],
            "training": None if row in without else told,
        }
        for row in range(4)
    ]
    schema = pa.schema(
        [
            pa.field("sample_id", pa.string()),
            image_field(),
            label_field(["a", "b"]),
            vector_field("pixels", 4),
            pa.field("soft_label", pa.list_(pa.float32(), 2)),
            pa.field("training", pa.string()),
        ]
    )
    return MemoryTable(pa.Table.from_pylist(rows, schema))


def test_a_distilled_split_gives_what_nets_are_to_be_trained_with():
    split = TorchSplit(distilled_split(), pixels="normalised")
    item = split[2]
    assert item["image"].tolist() == [[[2.25, 0.0], [-3.0, 7.5]]]
    assert item["soft_label"].tolist() == [0.75, 0.25]
    assert split.training["learning_rate"] == 0.03
    assert torch.allclose(TorchSplit(distilled_split())[2]["image"], torch.full((1, 2, 2), 20 / 255))


def test_a_real_row_among_distilled_ones_is_sure_of_its_label_and_has_no_normalised_pixels():
    split = TorchSplit(distilled_split(without=(0, 1)))
    assert [item["soft_label"].tolist() for item in split.__getitems__([1, 2])] == [[0.0, 1.0], [0.75, 0.25]]
    assert split.training["mean"] == [0.5]
    with pytest.raises(StoreError, match="missing in rows of this split"):
        TorchSplit(distilled_split(without=(0,)), pixels="normalised")[0]


def test_normalised_pixels_where_there_are_none_or_with_views_are_refused():
    with pytest.raises(InputError, match="goes by images of 8 bits"):
        TorchSplit(distilled_split(), views="stored", pixels="normalised")
    with pytest.raises(StoreError, match=r"distill\.tesla and distill\.dm store them"):
        TorchSplit(split_with_views(), pixels="normalised")[0]
    assert TorchSplit(split_with_views()).training is None
