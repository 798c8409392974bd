"""Does verify find every flipped byte, and how fast is it? A flip in every kind of file, and GB/s beside a bare hash.

python benchmarks/verify.py [--flips 1000] [--megabytes 1000]
"""

import argparse
import io
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _rooms  # noqa: F401
import lance
import numpy as np
from blake3 import blake3
from PIL import Image

from flows.build import build_recipe
from stillroom.errors import StillroomError
from stillroom.snapshots import open as open_snapshot
from stillroom.stores import Store
from storage.verify import verify

RECIPE = """name: flips
seed: 7
stages:
  raw: {op: ingest.digits}
  split: {op: table.split, from: raw, validation: 20%, test: 20%}
  looks: {op: score.embed, from: split.train, side_px: 8, channels: 1}
  core: {op: prune.random, from: looks, keep: 20%}
publish:
  splits: {train: core, validation: split.validation, test: split.test}
"""
BIG = """name: big
seed: 7
stages:
  raw: {op: ingest.image_folder, path: PHOTOS}
  split: {op: table.split, from: raw, validation: 10%, test: 10%}
publish:
  splits: {train: split.train, validation: split.validation, test: split.test}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--megabytes", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _flips(Path(folder), args.flips)
        _speed(Path(folder), args.megabytes)


def _flips(folder: Path, flips: int) -> None:
    (folder / "flips.yaml").write_text(RECIPE)
    store = folder / "flips"
    build_recipe(folder / "flips.yaml", store)
    chance, before = random.Random(7), _seen(store)
    files = [path for path in sorted(store.rglob("*")) if path.is_file() and path.stat().st_size]
    counts: Counter[tuple[str, str]] = Counter()
    for _ in range(flips):
        path = chance.choice(files)
        whole = path.read_bytes()
        place = chance.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :])
        found = _found(store)
        # What a reader sees is looked at where verify found nothing: there it must be as before.
        counts[_kind(path, store), "found" if found else "not found, and no reader sees it" if _seen(store) == before else "MISSED"] += 1
        path.write_bytes(whole)
    print(f"{'file':<34}{'flips':>7}{'found':>7}{'harmless':>10}{'missed':>8}")
    for kind in [*sorted({kind for kind, _ in counts}), ""]:
        of_kind = {what: sum(n for (k, w), n in counts.items() if w == what and kind in (k, "")) for _, what in counts}
        harmless, missed = of_kind.get("not found, and no reader sees it", 0), of_kind.get("MISSED", 0)
        print(f"{kind or 'all':<34}{sum(of_kind.values()):>7}{of_kind.get('found', 0):>7}{harmless:>10}{missed:>8}")


def _found(store: Path) -> bool:
    try:
        return not verify(Store(store), narrow=False).sound
    except StillroomError:
        return True


def _seen(store: Path) -> Any:
    """All that readers get: every table by version, tag and as the newest, the snapshot, the runs."""
    try:
        seen: list[Any] = []
        for path in sorted(store.rglob("*.lance")):
            if (path / "_versions").is_dir():
                table = lance.dataset(str(path))
                seen.append((path.name, table.version, sorted((name, tag["version"]) for name, tag in table.tags.list().items())))
                seen += [lance.dataset(str(path), version=tag).to_table().to_pylist() for tag in sorted(table.tags.list())]
        return [*seen, open_snapshot("flips@1", store).manifest]
    except BaseException as error:  # Lance's panics are no Exceptions
        if isinstance(error, KeyboardInterrupt):
            raise
        return repr(error)


def _kind(path: Path, store: Path) -> str:
    key = str(path.relative_to(store))
    if ".lance/" in key:
        return f"Lance: {key.partition('.lance/')[2].rpartition('/')[0] if 'hint' not in key else 'hint of the newest version'}"
    return f"{key.partition('/')[0]}{path.suffix if path.suffix in ('.leaves', '.html') else ''}"


def _speed(folder: Path, megabytes: int) -> None:
    rng = np.random.default_rng(7)
    for number in range(megabytes * 2):
        path = folder / "photos" / str(number % 10) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (408, 408, 3), np.uint8)).save(image, "PNG", compress_level=0)
        path.write_bytes(image.getvalue())
    (folder / "big.yaml").write_text(BIG.replace("PHOTOS", str(folder / "photos")))
    build_recipe(folder / "big.yaml", folder / "big")
    size = sum(path.stat().st_size for path in (folder / "big").rglob("*") if path.is_file())
    ways = {"stillroom verify": lambda: verify(Store(folder / "big")), "BLAKE3 of each file": lambda: _hash(folder / "big")}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _, (name, way) in [(turn, pair) for turn in range(3) for pair in ways.items()]:
        begun = time.perf_counter()
        way()
        times[name].append(time.perf_counter() - begun)
    print(f"\n{'a store of ' + format(size / 1e9, '.2f') + ' GB, best of 3':<34}{'seconds':>9}{'GB/s':>8}")
    for name, seconds in times.items():
        print(f"{name:<34}{min(seconds):>9.2f}{size / min(seconds) / 1e9:>8.2f}")
    begun = time.perf_counter()
    open_snapshot("big@1", folder / "big")
    print(f"{'opening its snapshot':<34}{time.perf_counter() - begun:>9.4f}")


def _hash(folder: Path) -> list[str]:
    return [_digest(path) for path in _all(folder)]


def _all(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size)


def _digest(path: Path) -> str:
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()


if __name__ == "__main__":
    main()
