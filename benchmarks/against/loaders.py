"""One epoch of one loader in a process of its own: `loaders.py TOOL FOLDER WORKERS BATCH`, and what it took as JSON.

Every loader gives shuffled batches of uint8 [B, C, H, W] and int64 [B] from the same pictures, decoded by Pillow where the tool
itself doesn't decode, each in the way that its own documentation shows.
"""

import io
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

torch.set_num_threads(1)
COLUMNS = ["image", "label"]


def decoded(data: bytes) -> torch.Tensor:
    """Encoded bytes as uint8 [C, H, W]."""
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    return torch.from_numpy((pixels[..., None] if pixels.ndim == 2 else pixels).transpose(2, 0, 1).copy())


def ready(item: dict[str, Any]) -> dict[str, Any]:
    """A sample as a batch is made of them."""
    return {"image": decoded(item["image"]), "label": int(item["label"])}


class Loader:
    """A tool on its data: `batches` begins an epoch; `state` and `resumed` where it can go on in the middle of one."""

    def __init__(self, folder: Path, workers: int, batch: int) -> None:
        self.folder, self.workers, self.batch = folder, workers, batch
        self.made = self.make()

    @staticmethod
    def write(folder: Path, files: list[tuple[Path, int]]) -> None:
        """Bring pictures and labels into the tool's own form, unless somebody else has."""

    def make(self) -> Any:
        """Open it."""
        raise NotImplementedError

    def batches(self) -> Iterator[Any]:
        return iter(self.made)

    def state(self) -> Any:
        """Where the epoch stands; None of a tool that can't say."""
        return self.made.state_dict() if hasattr(self.made, "state_dict") else None

    def resume(self, state: Any) -> None:
        self.made.load_state_dict(state)


class Stillroom(Loader):
    """Ready batches of a snapshot."""

    image: str | None = None
    views: str | None = None

    def make(self) -> Any:
        import stillroom

        snapshot = stillroom.open("pictures@1", store=self.folder / "stillroom")
        return snapshot.stream("train", batch_size=self.batch, num_workers=self.workers, pixels="uint8", image=self.image, views=self.views)


class StillroomDecoding(Stillroom):
    """The same, from encoded images though decoded ones are stored."""

    image = "image"


class StillroomViews(Stillroom):
    """The same, with stored views replayed and soft labels decoded."""

    views = "stored"


class LanceDB(Loader):
    """LanceDB's own stream, from the same table."""

    def make(self) -> Any:
        import lancedb
        from lancedb.streaming import StreamingDataLoader, StreamingDataset

        table = lancedb.connect(self.folder / "stillroom").open_table("pictures")
        self.rows = StreamingDataset(table, num_splits=max(1, self.workers), shuffle_seed=1, columns=COLUMNS, transform=lance_rows)
        # Forked workers, which are torch's default, die of a segmentation fault here.
        context = {"multiprocessing_context": "forkserver"} if self.workers else {}
        return StreamingDataLoader(self.rows, batch_size=self.batch, num_workers=self.workers, **context)

    def state(self) -> Any:
        try:
            return self.rows.state_dict()
        except RuntimeError:  # with several workers it has one only at some steps: the next is asked
            return None

    def resume(self, state: Any) -> None:
        self.rows.load_state_dict(state)


def lance_rows(batch: Any) -> list[dict[str, Any]]:
    return [ready(row) for row in batch.to_pylist()]


def with_bytes(file: tuple[Path, int]) -> dict[str, Any]:
    return {"image": file[0].read_bytes(), "label": file[1]}


class LitData(Loader):
    """Chunks written by `litdata.optimize`."""

    @staticmethod
    def write(folder: Path, files: list[tuple[Path, int]]) -> None:
        import litdata

        litdata.optimize(with_bytes, files, str(folder / "litdata"), chunk_bytes="64MB", num_workers=1)

    def make(self) -> Any:
        import litdata

        rows = litdata.StreamingDataset(str(self.folder / "litdata"), shuffle=True, drop_last=False, transform=ready)
        return litdata.StreamingDataLoader(rows, batch_size=self.batch, num_workers=self.workers)


class Mosaic(Loader):
    """MDS shards on the local disk."""

    @staticmethod
    def write(folder: Path, files: list[tuple[Path, int]]) -> None:
        from streaming import MDSWriter

        with MDSWriter(out=str(folder / "mosaic"), columns={"image": "bytes", "label": "int"}) as out:
            for file in files:
                out.write(with_bytes(file))

    def make(self) -> Any:
        from streaming import StreamingDataLoader, StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        class Pictures(StreamingDataset):
            def __getitem__(self, at: int) -> Any:
                return ready(super().__getitem__(at))

        clean_stale_shared_memory()
        rows = Pictures(local=str(self.folder / "mosaic"), shuffle=True, batch_size=self.batch)
        return StreamingDataLoader(rows, batch_size=self.batch, num_workers=self.workers)


class WebDataset(Loader):
    """Tar files, shuffled in a buffer; it has no state."""

    @staticmethod
    def write(folder: Path, files: list[tuple[Path, int]]) -> None:
        import webdataset

        (folder / "webdataset").mkdir()
        with webdataset.ShardWriter(str(folder / "webdataset" / "%05d.tar"), maxcount=-(-len(files) // 8), verbose=0) as out:
            for number, (path, label) in enumerate(files):
                out.write({"__key__": f"{number:07}", "img": path.read_bytes(), "cls": str(label).encode()})

    def make(self) -> Any:
        import webdataset

        shards = sorted(map(str, (self.folder / "webdataset").glob("*.tar")))
        rows = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).map(tar_row).batched(self.batch, collation_fn=default_collate)
        return webdataset.WebLoader(rows, batch_size=None, num_workers=self.workers)

    def state(self) -> Any:
        return None


def tar_row(sample: dict[str, Any]) -> dict[str, Any]:
    return ready({"image": sample["img"], "label": sample["cls"]})


class HuggingFace(Loader):
    """`datasets` on disk, with a transform, in torchdata's loader, which has a state."""

    @staticmethod
    def write(folder: Path, files: list[tuple[Path, int]]) -> None:
        import datasets

        rows = [with_bytes(file) for file in files]
        datasets.Dataset.from_list(rows).save_to_disk(str(folder / "huggingface"))

    def make(self) -> Any:
        import datasets
        from torchdata.stateful_dataloader import StatefulDataLoader

        rows = datasets.load_from_disk(str(self.folder / "huggingface")).with_transform(hf_rows)
        return StatefulDataLoader(rows, batch_size=self.batch, shuffle=True, num_workers=self.workers)


def hf_rows(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"image": [decoded(data) for data in batch["image"]], "label": batch["label"]}


class Files(Loader):
    """A folder of files under torch's own DataLoader, as torchvision reads it."""

    def make(self) -> Any:
        from torchvision.datasets import ImageFolder

        rows = ImageFolder(str(self.folder / "files"), loader=file_pixels)
        return DataLoader(rows, batch_size=self.batch, shuffle=True, num_workers=self.workers, collate_fn=file_batch)

    def state(self) -> Any:
        return None


def file_pixels(path: str) -> torch.Tensor:
    return decoded(Path(path).read_bytes())


def file_batch(items: list[tuple[torch.Tensor, int]]) -> dict[str, Any]:
    return default_collate([{"image": image, "label": label} for image, label in items])


class Limit(Loader):
    """No loader: bytes that lie in memory are decoded and stacked, in this process."""

    def make(self) -> Any:
        self.bytes = [file.read_bytes() for file in sorted((self.folder / "files").rglob("*.*"))]
        decoded(self.bytes[0])
        return self

    def batches(self) -> Iterator[Any]:
        order = np.random.default_rng(1).permutation(len(self.bytes))
        for start in range(0, len(order), self.batch):
            rows = [decoded(self.bytes[at]) for at in order[start : start + self.batch]]
            yield {"image": torch.stack(rows), "label": torch.zeros(len(rows), dtype=torch.int64)}

    def state(self) -> Any:
        return None


TOOLS = {
    "stillroom": Stillroom, "stillroom-decoding": StillroomDecoding, "stillroom-views": StillroomViews, "lancedb": LanceDB, "litdata": LitData,
    "mosaic": Mosaic, "webdataset": WebDataset, "huggingface": HuggingFace, "files": Files, "limit": Limit,
}  # fmt: skip


def family() -> list[list[str]]:
    """Of this process and those below it: the fields of /proc/PID/stat after the name, the PID in front."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            found[file.parent.name] = file.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
    ours = {str(os.getpid())}
    while grown := {pid for pid, stat in found.items() if stat[1] in ours} - ours:
        ours |= grown
    return [[pid, *found[pid]] for pid in ours]


def cpu_seconds() -> float:
    """Of this process and all below it, those included that have ended and were waited for."""
    return sum(int(ticks) for stat in family() for ticks in stat[12:16]) / os.sysconf("SC_CLK_TCK")


def memory_mb() -> float:
    """What this process and those below it hold, pages that several share in equal parts."""
    total = 0
    for pid, *_ in family():
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1024


def measure(tool: str, folder: Path, workers: int, batch: int) -> dict[str, Any]:
    """An epoch, and the way back into its middle; rates are those after the first batch, which stands alone."""
    TOOLS[tool](folder, 0, batch)  # what is imported and looked up once isn't counted
    rows = sum(1 for _ in (folder / "files").rglob("*.*"))
    quarter, half, last = rows // 4, rows // 2, rows - 2 * batch
    state, first_s, aside_s, held_mb = None, 0.0, 0.0, []
    begun = time.perf_counter()
    loader, samples = TOOLS[tool](folder, workers, batch), 0
    for steps, made in enumerate(loader.batches(), start=1):
        if steps == 1:
            first_s = time.perf_counter() - begun
            rested_cpu_s, of_first = cpu_seconds(), len(made["label"])
            assert made["image"].dtype == torch.uint8 and made["image"].ndim == 4 and made["label"].dtype == torch.int64
        samples += len(made["label"])
        aside = time.perf_counter()
        if samples >= (quarter, last)[len(held_mb)] if len(held_mb) < 2 else False:
            held_mb.append(memory_mb())
        if state is None and samples >= half:
            state = loader.state()
        aside_s += time.perf_counter() - aside
    wall_s, cpu_s = time.perf_counter() - begun - first_s - aside_s, cpu_seconds() - rested_cpu_s
    assert samples >= rows - batch, f"{samples} of {rows} rows came"
    resume_s = None
    if state is not None:
        again = time.perf_counter()
        other = TOOLS[tool](folder, workers, batch)
        other.resume(state)
        next(iter(other.batches()))
        resume_s = time.perf_counter() - again
    later = samples - of_first
    return {"per_s": later / wall_s, "per_cpu_s": later / cpu_s, "first_s": first_s, "resume_s": resume_s, "held_mb": held_mb}


def files_of(folder: Path) -> list[tuple[Path, int]]:
    """The pictures with their labels, in which their folders' names end."""
    return [(file, int(file.parent.name.rpartition("-")[2])) for file in sorted((folder / "files").rglob("*.*"))]


if __name__ == "__main__" and sys.argv[3:] == ["write"]:
    TOOLS[sys.argv[1]].write(Path(sys.argv[2]), files_of(Path(sys.argv[2])))
elif __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
