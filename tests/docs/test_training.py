"""The code of the guides on training, run as it stands on a small snapshot; and that each line of their table is held by a test."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import stillroom
from stillroom.train import batch_loss, soft_cross_entropy
from stillroom.views import ViewPolicy
from tests.docs.test_docs import DOCS, ROOT, blocks
from tests.small import publish_small

TRAINING, DISTRIBUTED = DOCS / "guides" / "training.md", DOCS / "guides" / "distributed.md"
# As torchrun does: a process for each rank. These are forked once torch is loaded, which a process of its own takes seconds for.
RANKS = """
import os, runpy, sys
import torch, torch._dynamo, torch.distributed, torch.nn.parallel
import stillroom.train

for port, ranks, *arguments in [words.split() for words in sys.argv[2:]]:
    children = []
    for rank in range(int(ranks)):
        if (child := os.fork()) == 0:
            torch.set_num_threads(1)
            os.environ.update(RANK=str(rank), WORLD_SIZE=ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            sys.argv = [sys.argv[1], *arguments]
            runpy.run_path(sys.argv[0], run_name="__main__")
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    ended = [os.waitpid(child, 0)[1] for child in children]
    assert not any(ended), ended
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    store = tmp_path_factory.mktemp("store")
    publish_small(store)
    publish_small(store, "turned", policy=ViewPolicy(kinds=("quarter_turns",)))
    return store


@pytest.fixture
def trained(digits, tmp_path, monkeypatch):
    """Runs a block of the guide in an empty folder, as a script, and gives what it left."""
    monkeypatch.setenv("STILLROOM_STORE", str(digits))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    def run(number: int) -> dict:
        names = {"__name__": "__main__"}
        exec(compile(blocks(TRAINING, "python")[number], "training.md", "exec"), names)
        return names

    return run


def accuracy(net, store: Path) -> float:
    batch = next(iter(stillroom.open("digits", store).stream("test", batch_size=20)))
    with torch.no_grad():
        return float((net.eval()(batch["image"]).argmax(dim=1) == batch["label"]).float().mean())


def test_the_loop_in_plain_torch_learns(trained, digits):
    assert accuracy(trained(0)["net"], digits) > 0.8


def test_the_loop_with_a_checkpoint_goes_on(trained, tmp_path):
    assert len(trained(1)["losses"]) == 4
    assert (tmp_path / "run.pt").exists()
    assert trained(1)["losses"] == []  # all epochs are done


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_the_module_for_lightning_trains_and_its_checkpoint_goes_on_in_an_epoch_and_after_one(trained, tmp_path):
    import pytorch_lightning as lightning
    from pytorch_lightning.callbacks import ModelCheckpoint

    names = trained(2)
    assert names["trainer"].global_step == 2 * 4 and names["stream"].epoch == 2
    seen: list[tuple[int, int]] = []

    class Watched(names["Student"]):
        def training_step(self, batch):
            seen.append((batch["epoch"], batch["position"]))
            return super().training_step(batch)

    def fit(epochs: int, ckpt_path=None) -> list[tuple[int, int]]:
        seen.clear()
        keep = ModelCheckpoint(tmp_path, filename="{epoch}-{step}", every_n_train_steps=6, save_on_train_epoch_end=False, save_top_k=-1)
        at_end = ModelCheckpoint(tmp_path, filename="end-{epoch}", save_top_k=-1)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[keep, at_end], **quiet)
        trainer.fit(Watched(), stillroom.open("digits").stream("train", batch_size=32, views="stored"), ckpt_path=ckpt_path)
        return list(seen)

    whole = fit(3)
    assert whole == [(step // 4, min(32 * (step % 4 + 1), 103)) for step in range(12)]
    assert fit(3, tmp_path / "epoch=1-step=6.ckpt") == whole[6:]
    assert fit(3, tmp_path / "end-epoch=0.ckpt") == whole[4:]


def test_the_loop_for_timm_trains(trained):
    assert np.isfinite(trained(3)["loss"].item())


def test_the_loop_for_joint_labels_learns(trained, digits):
    names = trained(5)
    batch = next(iter(stillroom.open("digits", digits).stream("test", batch_size=20)))
    with torch.no_grad():
        logits, single = names["logits"](batch["image"]), names["net"](batch["image"])[:, ::4]
    assert logits.shape == single.shape == (20, 3)
    assert all(float((found.argmax(dim=1) == batch["label"]).float().mean()) > 0.8 for found in (logits, single))


def test_accelerate_leaves_a_stream_as_it_is(digits):
    from accelerate import Accelerator

    stream = stillroom.open("digits", digits).stream("train", batch_size=32)
    net = torch.nn.Linear(1, 1)
    _, _, prepared = Accelerator(cpu=True).prepare(net, torch.optim.SGD(net.parameters(), lr=1), stream)
    assert prepared is stream


def test_a_run_stopped_on_eight_ranks_goes_on_with_four_and_ends_as_one_process_does(digits, tmp_path):
    (script,) = blocks(DISTRIBUTED, "python")
    (tmp_path / "train.py").write_text(script)
    environment = os.environ | {"STILLROOM_STORE": str(digits), "PYTHONPATH": str(ROOT)}
    ports = [str(port) for port in free_ports(3)]
    runs = [f"{ports[0]} 8 run.pt 6", f"{ports[1]} 4 run.pt 0", f"{ports[2]} 1 whole.pt 0"]
    ended = subprocess.run([sys.executable, "-c", RANKS, "train.py", *runs], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-3000:]
    states = [torch.load(tmp_path / name, weights_only=True) for name in ("run.pt", "whole.pt")]
    assert states[0]["stream"] == states[1]["stream"] and states[0]["stream"]["epoch"] == 3
    for name, value in states[1]["net"].items():
        assert torch.allclose(states[0]["net"][name], value, atol=1e-7)  # images and labels are float32


def free_ports(count: int) -> list[int]:
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_ranks_average_to_the_loss_of_the_global_batch(digits):
    train, net = stillroom.open("digits", digits), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    ranks = [list(train.stream("train", batch_size=32, views="stored", rank=rank, world_size=4)) for rank in range(4)]
    for whole, *parts in zip(train.stream("train", batch_size=32, views="stored"), *ranks, strict=True):
        mean = sum(batch_loss(net(part["image"]), part, world_size=4) for part in parts) / 4
        assert mean.item() == pytest.approx(soft_cross_entropy(net(whole["image"]), whole["soft_label"]).item(), rel=1e-5)
        assert whole["samples"] == len(whole["label"]) == parts[0]["samples"]


def test_each_line_of_the_table_is_held_by_a_test_that_is_there():
    tests = "".join((ROOT / "tests" / file).read_text() for file in ("stillroom/test_streams.py", "docs/test_training.py"))
    table = DISTRIBUTED.read_text().split("## What is meant by what")[1].split("\n## ")[0]
    lines = [line for line in table.split("\n") if line.startswith("| ") and not line.startswith("| |")]
    assert len(lines) >= 18
    for line in lines:
        names = re.findall(r"`(test_\w+)`", line.rsplit(" | ", 1)[1])
        assert names, line
        assert [name for name in names if f"def {name}(" not in tests] == []
