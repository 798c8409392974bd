"""The six stages of storage.py with Hugging Face `datasets`, each a `map` or a `filter`: python hf_stages.py PICTURES CACHE SAVED."""

import sys
from pathlib import Path
from typing import Any

from datasets import Image, load_dataset
from pictures import decodes, digest, is_kept, looks, split_of


def main(pictures: str, cache: str, saved: str) -> None:
    raw = load_dataset("imagefolder", data_dir=pictures, split="train", cache_dir=cache).cast_column("image", Image(decode=False))
    split = raw.map(lambda row: {"digest": digest(_bytes(row)), "split": split_of(digest(_bytes(row)))})
    sound = split.filter(lambda row: decodes(_bytes(row)))
    seen: set[str] = set()
    clean = sound.filter(lambda row: not (row["digest"] in seen or seen.add(row["digest"])))
    hashed = clean.map(lambda row: {"looks": looks(_bytes(row))})
    kept = hashed.filter(lambda row: row["split"] == "train" and is_kept(row["digest"]))
    kept.save_to_disk(saved)  # with the pictures in it


def _bytes(row: dict[str, Any]) -> bytes:
    image = row["image"]
    return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


if __name__ == "__main__":
    main(*sys.argv[1:])
