"""A build with nothing to do: ten stages over a folder of pictures, all there, against `dvc repro` and `kedro run --only-missing-outputs`.

python benchmarks/noop.py [--pictures 500] [--runs 9]

Each tool has ten stages that it ran before. DVC's and Kedro's pass a list of the pictures on, the lightest that they can pass; ours do
what they are called. Kedro looks whether outputs are there, and at no input; DVC and stillroom look at each picture's size and times.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from _others import Cost, machine, medians, show, timed, tools, write_pictures

RECIPE = """name: ten
seed: 1
stages:
  raw: {op: ingest.image_folder, path: ../pictures}
  split: {op: table.split, from: raw, validation: 10%, test: 10%}
  sound: {op: filter.decodable, from: split}
  clean: {op: filter.exact_duplicates, from: sound}
  hashed: {op: score.perceptual_hash, from: clean}
  distinct: {op: filter.near_duplicates, from: hashed}
  looks: {op: score.embed, from: distinct.train, net: pixels, side_px: 8, channels: 3}
  core: {op: prune.k_medoids, from: looks, vectors: embedding, keep: 50%, balance: label}
  half: {op: prune.random, from: core, keep: 50%, balance: label}
  mixed: {op: table.mix, from: {few: half}}
publish:
  splits: {train: mixed, validation: distinct.validation, test: distinct.test}
"""
# What of our time goes into the libraries that read a command line, a recipe and a schema.
FLOOR = "… of which importing pyarrow, typer, pydantic"
STAGE = """import json, sys
from pathlib import Path
source, target = map(Path, sys.argv[1:])
rows = json.loads(source.read_text()) if source.is_file() else sorted(map(str, source.rglob("*.jpg")))
target.write_text(json.dumps(rows))
"""
PIPELINE = """from pathlib import Path

from kedro.pipeline import Pipeline, node


def ingest():
    return sorted(map(str, Path("../pictures").rglob("*.jpg")))


def step(rows):
    return rows


def register_pipelines():
    stages = [node(step, f"s{number}", f"s{number + 1}", name=f"stage{number + 1}") for number in range(1, 10)]
    return {"__default__": Pipeline([node(ingest, None, "s1", name="stage1"), *stages])}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_pictures(folder / "pictures", args.pictures, 48)
        ways = {
            "stillroom build": _stillroom(folder / "ours"),
            "dvc repro": _dvc(folder / "dvc"),
            "dvc repro, in a Git repository": _dvc(folder / "dvc-git", git=True),
            "kedro run --only-missing-outputs": _kedro(folder / "kedro"),
        }
        ways[FLOOR] = [sys.executable, "-c", "import pyarrow, typer; from pydantic import BaseModel, TypeAdapter"], folder
        for command, place in ways.values():
            timed(command, place)  # runs the stages, or warms the caches
        costs: dict[str, list[Cost]] = {name: [] for name in ways}
        for _ in range(args.runs):
            for name, (command, place) in ways.items():
                costs[name].append(timed(command, place))
    found = {name: medians(each) for name, each in costs.items()}
    ours, *others = [cost for name, cost in found.items() if name != FLOOR]
    fastest = Cost(min(cost.wall for cost in others), min(cost.cpu for cost in others))
    lines = [[name, f"{c.wall:.2f}", f"{c.cpu:.2f}", f"{c.wall / fastest.wall:.2f}x", f"{c.cpu / fastest.cpu:.2f}x"] for name, c in found.items()]
    show(["ten stages, nothing to do", "wall s", "CPU s", "of the faster other: wall", "CPU"], lines)
    met = ours.wall < 1 and ours.wall <= fastest.wall / 2
    print(
        f"goal, under a second and at most half of the faster: {'met' if met else 'not met'}; medians of {args.runs}, {args.pictures:,} pictures; {machine()}"
    )


def _stillroom(folder: Path) -> tuple[list[str | Path], Path]:
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE)
    return [Path(sys.executable).with_name("stillroom"), "build", "recipe.yaml"], folder


def _dvc(folder: Path, *, git: bool = False) -> tuple[list[str | Path], Path]:
    folder.mkdir()
    (folder / "stage.py").write_text(STAGE)
    stages = ["stages:"]
    for number, source in enumerate(["../pictures", *(f"s{before}.json" for before in range(1, 10))], start=1):
        stages += [f"  s{number}:", f"    cmd: {tools() / 'python'} stage.py {source} s{number}.json"]
        stages += [f"    deps: [stage.py, {source}]", f"    outs: [s{number}.json]"]
    (folder / "dvc.yaml").write_text("\n".join(stages) + "\n")
    if git:
        timed(["git", "init", "-q"], folder)
    timed([tools() / "dvc", "init", "-q", *([] if git else ["--no-scm"])], folder)
    return [tools() / "dvc", "repro"], folder


def _kedro(folder: Path) -> tuple[list[str | Path], Path]:
    package = folder / "src" / "ten"
    package.mkdir(parents=True)
    (folder / "conf" / "base").mkdir(parents=True)
    (folder / "conf" / "local").mkdir()
    facts = {"package_name": "ten", "project_name": "ten", "kedro_init_version": "1.7.0", "source_dir": "src"}
    (folder / "pyproject.toml").write_text("[tool.kedro]\n" + "".join(f'{key} = "{value}"\n' for key, value in facts.items()))
    for name, text in {"__init__": "", "settings": "", "pipeline_registry": PIPELINE}.items():
        (package / f"{name}.py").write_text(text)
    (folder / "conf" / "base" / "catalog.yml").write_text("".join(f"s{n}:\n  type: json.JSONDataset\n  filepath: data/s{n}.json\n" for n in range(1, 11)))
    return [tools() / "kedro", "run", "--only-missing-outputs"], folder


if __name__ == "__main__":
    main()
