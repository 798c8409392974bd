"""Streams: the same global batches for any ranks, workers and batch sizes, resumed at any step; padding that counts for nothing."""

import copy
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data._utils import worker as torch_worker

from stillroom.draws import Draw
from stillroom.errors import InputError, StoreError
from stillroom.fields import image_field, label_field, pixels_field
from stillroom.images import encode_png
from stillroom.mixing import mix
from stillroom.soft_labels import encode, soft_label_type
from stillroom.streams import PRELOAD, Stream, Topology, share_of, stream
from stillroom.tables import MemoryTable
from stillroom.views import ViewPolicy, draw_views, view_contract, views_field
from tests.waiting import wait_for

ROWS, VIEWS, CLASSES, SEED = 103, 3, 3, 5
PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, 1, 6, 6), dtype=np.uint8)
IDS = [f"s{row}" for row in range(ROWS)]


def split(rows: int = ROWS, views: bool = False, **more: pa.Array) -> MemoryTable:
    """Samples s0, s1, … of three classes in turn; with stored views, if asked."""
    fields = [pa.field("sample_id", pa.string()), image_field(), label_field(["a", "b", "c"])]
    columns = [IDS[:rows], [encode_png(pixels.transpose(1, 2, 0)) for pixels in PIXELS[:rows]], [row % CLASSES for row in range(rows)]]
    if views:
        policy = ViewPolicy()
        drawn = draw_views(policy, IDS[:rows], np.tile([6, 6], (rows, 1)), Draw(0, "test"), VIEWS)
        field = views_field(view_contract(policy), soft_label_type(CLASSES, None), {"num_classes": CLASSES, "top_k": None, "temperature": 1.0})
        probs = np.random.default_rng(1).dirichlet(np.ones(CLASSES), rows * VIEWS)
        structs = pa.StructArray.from_arrays([*drawn.values.flatten(), encode(probs, None)], fields=list(field.type.value_type))
        fields, columns = [*fields, field], [*columns, pa.ListArray.from_arrays(drawn.offsets, structs)]
    table = pa.table(columns, schema=pa.schema(fields))
    for name, values in more.items():
        table = table.append_column(name, values)
    return MemoryTable(table)


TABLE, VIEWED = split(), split(views=True)


def made(batch_size: int = 8, table: MemoryTable = TABLE, **how) -> Stream:
    return stream(table, batch_size=batch_size, **{"seed": SEED, **how})


def ids(batches, limit: int | None = None) -> list[str]:
    """The ids of real rows, in the order in which they are handed out."""
    out = [sample_id for batch in batches for sample_id, weight in zip(batch["sample_id"], batch["weight"].tolist(), strict=True) if weight]
    return out[:limit]


def epochs(of: Stream, count: int) -> list[str]:
    return [sample_id for _ in range(count) for sample_id in ids(of)]


EXPECTED = epochs(made(), 3)


def on_ranks(world_size: int, **how) -> list[list[dict]]:
    """The steps of one epoch, each a list of the ranks' batches; all ranks must have equally many."""
    return list(zip(*[list(made(rank=rank, world_size=world_size, **how)) for rank in range(world_size)], strict=True))


def by_workers(of: Stream, workers: int) -> list[dict]:
    """A pass as a DataLoader's workers make it, each from its own copy, in the order in which a DataLoader hands batches out."""
    parts = []
    for number in range(workers):
        torch_worker._worker_info = torch_worker.WorkerInfo(id=number, num_workers=workers, seed=100 + number, dataset=None)
        try:
            parts.append(list(pickled(of)))
        finally:
            torch_worker._worker_info = None
    return [part[step] for step in range(max(map(len, parts))) for part in parts if step < len(part)]


def pickled(of: Stream) -> Stream:
    """The copy that a worker gets: it shares what copies share."""
    twin = copy.copy(of)
    twin._passes = of._passes
    return twin


def test_a_batch_is_what_it_says():
    first = next(iter(made(table=VIEWED, views="stored")))
    assert {name: (value.dtype, list(value.shape)) for name, value in first.items() if isinstance(value, torch.Tensor)} == {
        "image": (torch.float32, [8, 1, 6, 6]),
        "label": (torch.int64, [8]),
        "soft_label": (torch.float32, [8, CLASSES]),
        "weight": (torch.float32, [8]),
    }
    assert first["sample_id"] == EXPECTED[:8] and (first["epoch"], first["position"]) == (0, 8)
    assert first["image"].min() >= 0 and first["image"].max() <= 1


@pytest.mark.parametrize("views", [None, "stored"])
def test_a_stream_shows_what_the_map_style_split_shows(views):
    from stillroom.datasets import TorchSplit

    split, shown = TorchSplit(VIEWED, views=views, seed=SEED), made(table=VIEWED, views=views)
    for epoch in range(VIEWS):
        split.set_epoch(epoch)
        for batch in shown:
            for at, sample_id in enumerate(batch["sample_id"]):
                item = split[int(sample_id[1:])]
                assert torch.equal(item["image"], batch["image"][at]) and item["label"] == batch["label"][at]
                assert views is None or torch.equal(item["soft_label"], batch["soft_label"][at])


# L04: the order is that of seed and epoch.
@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 3]), st.sampled_from([8, 16, 24, 104]), st.sampled_from([1, 2]))
def test_the_global_order_is_the_same_for_any_topology(world_size, workers, batch_size, micro_batches):
    order = []
    of_ranks = [made(batch_size, rank=rank, world_size=world_size, micro_batches=micro_batches) for rank in range(world_size)]
    for _ in range(2):
        for step in zip(*[by_workers(rank, workers) for rank in of_ranks], strict=True):
            assert len({batch["position"] for batch in step}) == 1
            order += [sample_id for batch in step for sample_id in ids([batch])]
    # by_workers uses one seed for all passes, as a program does that calls torch.manual_seed before each.
    assert order == EXPECTED[: 2 * ROWS]


def test_epochs_differ_and_seeds_do():
    first, second = EXPECTED[:ROWS], EXPECTED[ROWS : 2 * ROWS]
    assert sorted(first) == sorted(second) == sorted(IDS) and first != second
    assert ids(made(seed=6)) != first
    assert ids(made(shuffle=False)) == IDS


# L03: nothing is dropped, and no rank waits for another that has ended.
@pytest.mark.parametrize("world_size", [2, 4])
def test_each_id_once_over_ranks_and_equal_steps(world_size):
    steps = on_ranks(world_size)
    assert len(steps) == len(made(rank=0, world_size=world_size)) == 13
    assert Counter(ids(batch for step in steps for batch in step)) == Counter(IDS)
    padded = [batch["weight"].tolist() for batch in steps[-1]]  # 103 = 12 x 8 + 7
    assert sum(map(sum, padded)) == 7 and len({len(weights) for weights in padded}) == 1 and padded[-1][-1] == 0
    dropped = on_ranks(world_size, drop_last=True)
    assert len(dropped) == len(made(drop_last=True)) == 12
    assert ids(batch for step in dropped for batch in step) == EXPECTED[:96]


def test_one_rank_has_a_short_last_batch_and_no_padding():
    *_, last = made()
    assert last["weight"].tolist() == [1] * 7 and last["position"] == ROWS


@given(st.integers(0, 50), st.integers(1, 40), st.integers(1, 6), st.sampled_from([1, 2]))
def test_shares_are_contiguous_equal_and_complete(start, groups, world_size, unit):
    stop = start + groups * unit
    shares = [share_of(start, stop, Topology(rank, world_size), unit) for rank in range(world_size)]
    assert len({len(positions) for positions, _ in shares}) == 1
    assert np.concatenate([positions[real > 0] for positions, real in shares]).tolist() == list(range(start, stop))
    assert all(start <= position < stop for positions, _ in shares for position in positions)
    assert (len(shares[0][0]) - unit) * world_size < stop - start  # no more padding than equal shares need


def test_a_micro_batch_is_a_global_batch_of_a_part_of_the_size():
    whole = [ids(step) for step in on_ranks(8, batch_size=32)]
    half = [ids(step) for step in on_ranks(4, batch_size=32, micro_batches=2)]
    assert [first + second for first, second in zip(half[:6:2], half[1:6:2], strict=True)] == whole[:3]


@pytest.mark.parametrize(
    ("how", "told"), [({"world_size": 3, "rank": 0}, "3 ranks x 1"), ({"micro_batches": 3}, "1 ranks x 3"), ({"batch_size": 0}, "1 ranks x 1")]
)
def test_a_batch_that_ranks_can_not_share_is_one_line(how, told):
    with pytest.raises(InputError, match=rf"stream: batch_size=\d can't be divided by {told} micro batches; take a multiple of"):
        made(**how)


def test_ranks_come_from_the_environment_and_are_checked(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert made().topology == (1, 2) and next(iter(made()))["sample_id"] == EXPECTED[4:8]
    assert made(rank=0, world_size=1).topology == (0, 1)
    with pytest.raises(InputError, match="rank 2 of 2"):
        made(rank=2)


# L02 and L07: stop at each step, twice, with other workers and another batch size each time.
@given(st.integers(0, 30), st.integers(0, 30), st.sampled_from([8, 5, 104]), st.sampled_from([8, 3]), st.sampled_from([0, 2, 3]))
def test_resumed_twice_anywhere_the_sequence_is_that_of_an_uninterrupted_run(first_stop, second_stop, second_size, third_size, workers):
    seen: list[str] = []
    state = None
    for size, stop in ((8, first_stop), (second_size, second_stop), (third_size, None)):
        batches = made(size)
        if state:
            batches.load_state_dict(json.loads(json.dumps(state)))
        state, steps = batches.state_dict(), 0
        while len(seen) < 3 * ROWS and steps != stop:
            for batch in by_workers(batches, workers) if workers else batches:
                if steps == stop:
                    break
                seen += ids([batch])
                steps += 1
                state = batches.state_after(batch)
                assert workers or state == batches.state_dict()
    assert seen[: 3 * ROWS] == EXPECTED
    assert sorted(state) == ["digest", "epoch", "position", "seed"]


@pytest.mark.parametrize("world_sizes", [(2, 4), (4, 1), (1, 2)])
def test_a_state_goes_on_with_other_ranks(world_sizes):
    before, after = world_sizes
    seen, states = [], []
    for step in list(zip(*[made(rank=rank, world_size=before) for rank in range(before)], strict=True))[:5]:
        seen += [sample_id for batch in step for sample_id in ids([batch])]
    one = made(rank=before - 1, world_size=before)
    for number, _ in enumerate(one):
        if number == 4:
            states.append(one.state_dict())
            break
    ranks = [made(rank=rank, world_size=after) for rank in range(after)]
    for rank in ranks:
        rank.load_state_dict(states[0])
    seen += [sample_id for step in zip(*ranks, strict=True) for batch in step for sample_id in ids([batch])]
    assert seen == EXPECTED[:ROWS]


def test_after_the_last_batch_the_state_is_the_next_epoch_and_the_epoch_loop_goes_on():
    batches = made()
    states = [batches.state_dict() for _ in batches]
    state = states[-1]
    assert (states[-2]["position"], state["epoch"], state["position"]) == (96, 1, 0) and batches.state_dict() == state
    resumed = made()
    resumed.load_state_dict(state)
    assert [ids(resumed) for _ in range(resumed.epoch, 3)] == [EXPECTED[ROWS : 2 * ROWS], EXPECTED[2 * ROWS :]]


def test_with_drop_last_what_is_left_of_an_epoch_is_left_out_after_a_resume_too():
    batches = made(drop_last=True)
    batches.load_state_dict(made().state_dict() | {"position": 96})
    assert ids(batches) == EXPECTED[ROWS : ROWS + 96]


def test_a_loop_that_breaks_off_goes_on_with_the_next_epoch():
    batches = made()
    next(iter(batches))
    assert batches.state_dict()["position"] == 8
    assert ids(batches) == EXPECTED[ROWS : 2 * ROWS]
    batches.set_epoch(0)
    assert ids(batches) == EXPECTED[:ROWS]


def test_set_epoch_leaves_the_place_of_a_state_in_that_epoch():
    batches = made()
    for epoch, expected in ((1, EXPECTED[ROWS + 48 : 2 * ROWS]), (2, EXPECTED[2 * ROWS :])):
        batches.load_state_dict(made().state_dict() | {"epoch": 1, "position": 48})
        batches.set_epoch(epoch)
        assert ids(batches) == expected


@pytest.mark.parametrize("other", [{"seed": 6}, {"table": split(50)}, {"shuffle": "full"}, {"group": "label", "batch_size": 3}])
def test_the_state_of_something_else_is_refused_in_one_line(other):
    with pytest.raises(InputError, match="^state: is of seed 5 and digest .*, this stream has seed .*; open the snapshot, split, order and seed"):
        made(**other).load_state_dict(made().state_dict())
    with pytest.raises(InputError, match="state: lacks digest, seed"):
        made().load_state_dict({"epoch": 0, "position": 0})


def test_what_is_shown_may_change_on_resume():
    made(table=VIEWED, views="stored", pixels="uint8").load_state_dict(made(table=VIEWED).state_dict())


# The same with real processes, which start from a fork server that has loaded torch once.
@pytest.fixture(scope="session", autouse=True)
def _torch_loaded_once() -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)


def test_workers_of_its_own_give_the_same_batches_and_states():
    here, there = made(table=VIEWED, views="stored"), made(table=VIEWED, views="stored", num_workers=2)
    for _ in range(2):
        for expected, batch in zip(here, there, strict=True):
            assert batch["sample_id"] == expected["sample_id"] and torch.equal(batch["image"], expected["image"])
            assert there.state_dict() == here.state_dict()
    next(iter(there))
    there.load_state_dict(made(table=VIEWED).state_dict() | {"position": 88})
    assert epochs(there, 2) == EXPECTED[88 : 2 * ROWS]
    there.set_epoch(2)
    old = iter(there)
    assert ids([next(old)]) == EXPECTED[2 * ROWS : 2 * ROWS + 8]
    next(iter(there))
    with pytest.raises(InputError, match="a newer one has ended"):
        next(old)


def test_an_error_in_a_worker_of_its_own_is_the_error():
    with pytest.raises(StoreError, match="^views: are not in this split"):
        next(iter(made(views="stored", num_workers=1)))


@pytest.mark.parametrize("persistent", [False, True])
def test_a_plain_loader_needs_no_glue(persistent):
    batches = made()
    loader = DataLoader(batches, batch_size=None, num_workers=2, multiprocessing_context="forkserver", persistent_workers=persistent)
    assert len(loader) == 13
    assert [sample_id for _ in range(2) for sample_id in ids(loader)] == EXPECTED[: 2 * ROWS]
    batches.set_epoch(1)
    handed_out = iter(loader)
    state = batches.state_after([next(handed_out) for _ in range(3)][-1])
    with pytest.raises(InputError, match=r"which batches a DataLoader handed out isn't known here; use `stream.state_after\(batch\)`"):
        batches.state_dict()
    del handed_out
    batches.load_state_dict(state)
    assert ids(loader) == EXPECTED[ROWS + 24 : 2 * ROWS] and batches.epoch == 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_a_stateful_loader_resumes_at_any_step(workers):
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader() -> StatefulDataLoader:
        return StatefulDataLoader(made(24), batch_size=None, num_workers=workers, multiprocessing_context="forkserver" if workers else None)

    for stop in (2, 5) if workers else (1, 4, 5, 7):
        seen, steps, state = [], 0, None
        before = loader()
        while steps < stop:
            for batch in before:
                seen, steps, state = seen + ids([batch]), steps + 1, before.state_dict()
                if steps == stop:
                    break
        after = loader()
        after.load_state_dict(state)
        while len(seen) < 2 * ROWS:
            seen += ids(after)
        assert seen[: 2 * ROWS] == EXPECTED[: 2 * ROWS]


# L01
def test_forked_after_a_read_it_raises_at_once_and_says_the_way_out():
    batches = made()
    next(iter(batches))
    with pytest.raises(Exception, match=r"split: was read before this process was forked.*snapshot.stream\(…, num_workers=2\)"):
        next(iter(DataLoader(batches, batch_size=None, num_workers=1, multiprocessing_context="fork")))


def test_no_thread_is_left_by_a_loop_that_ends_or_breaks():
    before = threading.active_count()
    assert len(ids(made())) == ROWS
    for _ in made():
        break
    assert threading.active_count() == before


# L05
INTERRUPTED = """
import os
import signal
import sys
import pyarrow as pa
from stillroom.streams import stream
from stillroom.tables import MemoryTable

# No `if __name__`: workers run nothing of the script.
# A shell in the background has its children ignore Ctrl-C, and this would run for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
images = pa.array([b"P5 1 1 255 x"] * 100, pa.binary())
table = MemoryTable(pa.table({"sample_id": [str(row) for row in range(100)], "image": images, "label": [0] * 100}))
batches = stream(table, batch_size=8, num_workers=int(sys.argv[1]))
for again in [True] * 19 + [False]:
    try:
        while True:
            for batch in batches:
                os.write(1, b"going\\n")  # whole or not at all: `print` may be interrupted between a word and its line's end
    except KeyboardInterrupt:
        if not again:
            raise
        os.write(1, b"stopped\\n")
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_after_an_interrupt_it_starts_again_and_nothing_is_left(tmp_path, workers):
    (tmp_path / "train.py").write_text(INTERRUPTED)
    scratch = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))  # a short path: multiprocessing's sockets stand in it
    environment = os.environ | {"TMPDIR": str(scratch), "PYTHONPATH": str(Path(__file__).parents[2])}
    segments = set(os.listdir("/dev/shm"))
    started = [sys.executable, tmp_path / "train.py", workers]
    child = subprocess.Popen(started, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    patience = threading.Timer(240, os.killpg, (child.pid, signal.SIGKILL))
    patience.start()
    for again in [True] * 19 + [False]:
        for _ in range(4):  # until each worker has begun
            assert child.stdout.readline() == "going\n", child.stderr.read()
        os.killpg(child.pid, signal.SIGINT)  # as a terminal's Ctrl-C: to all of them
        while again and child.stdout.readline() != "stopped\n":
            assert child.poll() is None
    told = child.communicate(timeout=60)[1]
    patience.cancel()
    assert "KeyboardInterrupt" in told and "leaked" not in told
    wait_for(lambda: is_gone(child.pid), seconds=20)
    scratch.rmdir()  # empty
    assert {name for name in os.listdir("/dev/shm") if name.startswith("torch_")} <= segments


def is_gone(group: int) -> bool:
    """Whether no process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_groups_come_in_equal_parts_on_each_rank_and_are_resumed():
    batches = made(6, group="label", per_group=2)
    assert all(sorted(batch["label"].tolist()) == [0, 0, 1, 1, 2, 2] for batch in batches)
    whole = epochs(made(6, group="label", per_group=2), 2)
    resumed = made(12, group="label", per_group=2)
    resumed.load_state_dict(made(6, group="label", per_group=2).state_dict() | {"position": 30})
    assert epochs(resumed, 2) == whole[30:]
    with pytest.raises(InputError, match="a batch of 8 doesn't hold 3 groups, 2 rows each, in equal parts; take a multiple of 2 up to 6, or of 6"):
        made(8, group="label", per_group=2)
    with pytest.raises(StoreError, match="column 'kind': is not in this split; it has sample_id"):
        made(8, group="kind")


def test_views_of_a_sample_stand_beside_one_another_and_cycle():
    shown: dict[str, list[bytes]] = {}
    batches = made(8, table=VIEWED, views="stored", views_per_sample=2, pixels="uint8")
    single = made(8, table=VIEWED, views="stored", pixels="uint8")
    assert len(batches) == 26
    for _ in range(3):  # 3 epochs of 2 = 2 cycles of 3 views
        for batch in batches:
            assert batch["sample_id"][::2] == batch["sample_id"][1::2] and torch.equal(batch["label"][::2], batch["label"][1::2])
            for sample_id, image in zip(batch["sample_id"], batch["image"].numpy(), strict=True):
                shown.setdefault(sample_id, []).append(image.tobytes())
    for _ in range(3):
        for batch in single:
            for sample_id, image in zip(batch["sample_id"], batch["image"].numpy(), strict=True):
                shown[sample_id].append(image.tobytes())
    assert all(views[:3] == views[3:6] == views[6:] for views in shown.values())
    with pytest.raises(InputError, match="batch_size=9 can't be divided"):
        made(9, table=VIEWED, views="stored", views_per_sample=2)
    with pytest.raises(InputError, match="without views; pass views='stored'"):
        made(8, views_per_sample=2)


def test_weights_and_further_columns_come_along():
    table = split(worth=pa.array([None, *(row / 2 for row in range(1, ROWS))], pa.float32()), source=pa.array([f"f{row}" for row in range(ROWS)]))
    for rank in range(2):
        for batch in made(table=table, weights="worth", columns=["source"], rank=rank, world_size=2):
            rows = [int(sample_id[1:]) for sample_id in batch["sample_id"]]
            assert batch["source"] == [f"f{row}" for row in rows]
            real = [weight for weight, row in zip(batch["weight"].tolist(), rows, strict=True) if weight == (row / 2 or 1)]
            assert len(real) == len(rows) or (batch["position"] == ROWS and rank == 1 and batch["weight"][-1] == 0)
    with pytest.raises(StoreError, match="column 'wroth': is not in this split; it has sample_id, image"):
        next(iter(made(table=table, weights="wroth")))
    with pytest.raises(InputError, match="columns=.'label'.: a batch has them anyway"):
        made(columns=["label"])


def test_decoded_images_are_read_in_place_of_encoded_ones():
    other = 255 - PIXELS
    field = pixels_field((1, 6, 6))
    values = pa.array([image_CHW.tobytes() for image_CHW in other], field.type)
    table = MemoryTable(TABLE.table.append_column(field, values))
    fast, told = made(table=table, pixels="uint8", shuffle=False), made(table=table, pixels="uint8", shuffle=False, image="image")
    assert (torch.cat([batch["image"] for batch in fast]).numpy() == other).all()
    assert (torch.cat([batch["image"] for batch in told]).numpy() == PIXELS).all()
    assert next(iter(made(table=table, side_px=4, channels=3)))["image"].shape == (8, 3, 4, 4)
    half = MemoryTable(TABLE.table.append_column(field, pa.array([None] * ROWS, field.type)))
    with pytest.raises(StoreError, match="column 'image_pixels': is missing in rows of this split; pass image='image'"):
        next(iter(made(table=half)))


def test_images_that_differ_are_told_and_resized():
    table = split(4)
    images = [encode_png(np.full((4 + row, 4, 1 + 2 * (row % 2)), 9, np.uint8)) for row in range(4)]
    mixed = MemoryTable(table.table.set_column(1, image_field(), pa.array(images, pa.binary())))
    with pytest.raises(InputError, match="images of one batch differ in shape: 1x4x4, 1x6x4, 3x5x4; give side_px, and channels"):
        next(iter(made(4, table=mixed)))
    assert next(iter(made(4, table=mixed, side_px=5, channels=1)))["image"].shape == (4, 1, 5, 5)
    with pytest.raises(InputError, match="side_px is for plain images"):
        made(table=VIEWED, views="stored", side_px=5)


def test_a_broken_image_is_told_with_its_sample():
    broken = MemoryTable(split(4).table.set_column(1, image_field(), pa.array([b"no image"] * 4, pa.binary())))
    with pytest.raises(StoreError, match="sample 's.': not an image.*`stillroom verify`"):
        next(iter(made(4, table=broken)))


def test_a_mixed_stream_has_its_parts_by_weight_and_no_row_twice_before_all():
    few = split(10)
    renamed = MemoryTable(few.table.set_column(0, "sample_id", pa.array([f"t{row}" for row in range(10)])))
    mixed = mix([(made(10), 0.7), (made(10, table=renamed, seed=1), 0.3)], epoch_samples=100)
    shown = epochs(mixed, 10)
    assert len(mixed) == 10 and sum(name.startswith("t") for name in shown) == 300
    assert [name for name in shown if name.startswith("s")] == epochs(made(), 7)[:700]  # its own epochs, one after the other
    assert [name for name in shown if name.startswith("t")] == epochs(made(table=renamed, seed=1), 30)
    state = made(10).state_dict() | {"epoch": 3, "position": 37, "seed": 0, "digest": mixed.state_dict()["digest"]}
    for how in ({"batch_size": 20}, {"batch_size": 7, "num_workers": 2}):
        resumed = mix([(made(10), 0.7), (made(10, table=renamed, seed=1), 0.3)], epoch_samples=100, **how)
        resumed.load_state_dict(state)
        assert epochs(resumed, 2) == shown[337:500]


def test_ranks_share_a_mixed_batch():
    streams = [(made(8, table=VIEWED, views="stored"), 2), (made(8), 1)]
    whole = [ids([batch]) for batch in mix(streams)]
    parts = [list(mix(streams, rank=rank, world_size=2)) for rank in range(2)]
    assert [ids(step) for step in zip(*parts, strict=True)] == whole
    assert "soft_label" not in parts[0][0]  # not all of them have it


def test_what_can_not_be_mixed_is_told():
    with pytest.raises(InputError, match="there is no stream"):
        mix([])
    with pytest.raises(InputError, match=r"weights \[1, -1\]; each is a number above 0"):
        mix([(made(), 1), (made(), -1)])
    with pytest.raises(InputError, match="less than a thousandth"):
        mix([(made(), 1), (made(), 1e-6)])
    with pytest.raises(InputError, match=r"'image' differs from stream to stream: torch.float32 \[1, 5, 5\] and torch.float32 \[1, 6, 6\]; give all"):
        next(iter(mix([(made(), 1), (made(side_px=5), 1)])))
