"""Bytes on disk of six stages over pictures that only add small columns or drop rows: ours, Hugging Face datasets and DVC, against the pictures' own.

python benchmarks/storage.py            1,000 pictures of 50 kB

Six stages each: read the folder, a split by content, what decodes, one of equals, a hash of what it looks like, nine tenths of the training split.
"""

import argparse
import tempfile
from pathlib import Path

from _others import folder_bytes, machine, show, timed, tools, write_pictures

RECIPE = """name: pictures
seed: 1
stages:
  raw: {op: ingest.image_folder, path: pictures}
  split: {op: table.split, from: raw, validation: 10%, test: 10%}
  sound: {op: filter.decodable, from: split}
  clean: {op: filter.exact_duplicates, from: sound}
  hashed: {op: score.perceptual_hash, from: clean}
  kept: {op: prune.random, from: hashed.train, keep: 90%, balance: label}
"""
AGAINST = Path(__file__).resolve().parent / "against"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--side", type=int, default=288, help="a noisy JPEG of this side has about 50 kB")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pictures = folder / "pictures"
        size = write_pictures(pictures, args.pictures, args.side)
        sizes = {
            **_ours(folder),
            **_hf(folder, pictures),
            **_dvc(folder, pictures, "copy", "as it comes: copies"),
            **_dvc(folder, pictures, "hardlink", "cache.type hardlink"),
        }
    head = ["what is kept besides the folder that was read", "bytes", "of the pictures"]
    show(head, [[name, f"{count:,}", f"{count / size:.3f}x"] for name, count in {"the pictures themselves": size, **sizes}.items()])
    ratio = sizes["stillroom: the whole store"] / size
    met = "met" if ratio <= 1.05 else "not met"
    print(f"goal, ours at most 1.05 times the pictures: {met}; {args.pictures:,} pictures of {size // args.pictures:,} bytes; {machine()}")


def _ours(folder: Path) -> dict[str, int]:
    from flows.build import build_recipe

    (folder / "recipe.yaml").write_text(RECIPE)
    build_recipe(str(folder / "recipe.yaml"), folder / "store")
    tables = sum(file.stat().st_size for file in (folder / "store").glob("stages/*.lance/data/*"))
    return {"stillroom: tables of six stages": tables, "stillroom: the whole store": folder_bytes(folder / "store")}


def _hf(folder: Path, pictures: Path) -> dict[str, int]:
    """Its cache names the pictures by path; what is saved to be opened elsewhere holds them."""
    cache, saved = folder / "hf-cache", folder / "hf-saved"
    timed([tools() / "python", AGAINST / "hf_stages.py", pictures, cache, saved], folder, HF_HOME=str(folder / "hf"))
    return {"datasets: cache, pictures by path": folder_bytes(cache), "datasets: cache, and the last stage saved": folder_bytes(cache, saved)}


def _dvc(folder: Path, pictures: Path, links: str, words: str) -> dict[str, int]:
    """Cache and workspace of six stages, each of which gives a folder of pictures."""
    project = folder / f"dvc-{links}"
    project.mkdir()
    stages = ["stages:"]
    names = ["raw", "split", "sound", "clean", "hashed", "kept"]
    for name, source in zip(names, [str(pictures), *names], strict=False):
        stages += [
            f"  {name}:",
            f"    cmd: {tools() / 'python'} {AGAINST / 'dvc_stage.py'} {name} {source} {name}",
            f"    deps: [{source}]",
            f"    outs: [{name}]",
        ]
    (project / "dvc.yaml").write_text("\n".join(stages) + "\n")
    timed([tools() / "dvc", "init", "--no-scm", "-q"], project)
    timed([tools() / "dvc", "config", "cache.type", links], project)
    timed([tools() / "dvc", "repro", "-q"], project)
    return {f"DVC, {words}": folder_bytes(project)}


if __name__ == "__main__":
    main()
