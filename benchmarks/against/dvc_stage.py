"""One of the six stages of storage.py as DVC has them, a folder in and a folder out: python dvc_stage.py STAGE FROM TO."""

import csv
import shutil
import sys
from pathlib import Path

from pictures import decodes, digest, is_kept, looks, split_of


def main(stage: str, source: str, target: str) -> None:
    rows = _read(Path(source))
    Path(target).mkdir()
    seen: set[str] = set()
    kept = []
    for row in rows:
        data = Path(source, row["name"]).read_bytes()
        if stage == "split":
            row |= {"digest": digest(data), "split": split_of(digest(data))}
        if stage == "hashed":
            row["looks"] = looks(data)
        leaves = {
            "sound": lambda data=data: not decodes(data),
            "clean": lambda row=row: row["digest"] in seen,
            "kept": lambda row=row: row["split"] != "train" or not is_kept(row["digest"]),
        }.get(stage)
        if leaves is None or not leaves():
            seen.add(row.get("digest", ""))
            Path(target, row["name"]).parent.mkdir(exist_ok=True)
            shutil.copy(Path(source, row["name"]), Path(target, row["name"]))
            kept.append(row)
    with open(Path(target, "rows.csv"), "w", newline="") as file:
        table = csv.DictWriter(file, kept[0].keys())
        table.writeheader()
        table.writerows(kept)


def _read(folder: Path) -> list[dict[str, str]]:
    if not (folder / "rows.csv").exists():
        return [{"name": str(path.relative_to(folder)), "label": path.parent.name} for path in sorted(folder.rglob("*.jpg"))]
    with open(folder / "rows.csv", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main(*sys.argv[1:])
