"""Builds to be killed: a recipe with every shape of work, and one `stillroom build` in a process group of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stillroom.images import encode_png
from stillroom.stores import Store

__all__ = ["Build", "Event", "Target", "copy_store", "events", "run_build", "write_recipes"]

SITE = Path(__file__).parent / "site"
# How long processes of a killed build may live on; measured before there was a rule: a minute.
END_WITHIN_S = 10.0

# Sources with rows to merge and to reject, rows in partitions, a select over all.
SMALL = """name: chaos
seed: 3
stages:
  raw: {op: ingest.image_folder, path: pictures, shard_rows: 225}
  parts: {op: table.split, from: raw, validation: 20%, test: 20%}
  sound: {op: filter.decodable, from: parts}
  clean: {op: filter.exact_duplicates, from: sound}
  hashed: {op: score.perceptual_hash, from: clean}
"""
SMALL_PUBLISH = """publish:
  splits: {train: hashed.train, validation: hashed.validation, test: hashed.test}
  require: {max_leaks: 0, max_rejects: 5%}
"""

# What was there before: a snapshot of fewer pictures, which must stay readable whatever happens to the
# next one, and of which that takes unchanged rows over.
BEFORE = SMALL.replace("path: pictures", "path: fewer") + SMALL_PUBLISH

# And what trains: units with checkpoints, a score, a choice, stored views, students that are measured.
WHOLE = (
    SMALL
    + """
  teacher: {op: train.teacher, from: {samples: hashed.train, check_on: hashed.validation}, net: cnn, steps: 250, batch_size: 32, seeds: 2}
  dynamics: {op: score.dynamics, from: hashed.train, net: cnn, epochs: 2, el2n_epochs: [1], seeds: 2}
  core: {op: prune.by_score, from: dynamics, score: el2n, keep: 60%, order: middle, balance: label}
  reinforced:
    op: reinforce.teacher
    from: {samples: core, teacher: teacher, check_on: hashed.validation}
    views: {count: 2, policy: [identity, affine]}
    top_k: 3
  proof:
    op: evaluate.student
    from: {candidate: reinforced, raw: hashed.train, tune: hashed.validation, test: hashed.test}
    control: {in_place_of: core, pool: hashed.train}
    student: {net: cnn, steps: 20, batch_size: 32, learning_rates: [0.003], tune_seeds: 1, seeds: 2}
publish:
  splits: {train: reinforced, validation: hashed.validation, test: hashed.test}
  require: {max_leaks: 0, max_rejects: 5%}
  promote: {min_gain_over_control: -100%}
"""
)


class Target(NamedTuple):
    """A moment to die at: the nth of its kind and label; `who` is `build` or `machine`."""

    kind: str
    moment: str
    label: str
    nth: int
    who: str


class Event(NamedTuple):
    """One line of a build's log."""

    time: float
    pid: int
    kind: str
    moment: str
    label: str


@dataclass
class Build:
    """How one build went.

    `status` is the exit status; -9 where it was killed, at a `target` or by the clock. `outlived_s` is how long its other processes
    lived on after it, and `output` what it said.
    """

    status: int
    events: list[Event]
    output: str
    target: Target | None = None
    outlived_s: float = 0.0
    left: list[str] = field(default_factory=list)

    @property
    def killed(self) -> bool:
        """Whether it was killed before it could end."""
        return self.status == -signal.SIGKILL


def write_recipes(folder: Path, *, whole: bool) -> tuple[Path, Path]:
    """Write 800 and 900 digits as files, with a recipe for each; returns the recipes' paths.

    Forty are there twice, two more under two labels, and three are cut off.
    """
    from sklearn.datasets import load_digits

    held = load_digits()
    for source, count in (("fewer", 800), ("pictures", 900)):
        for number in range(count):
            pixels, label = (held.images[number] * 15.9).astype(np.uint8), int(held.target[number])
            png = encode_png(pixels[..., None])
            names = [f"{label}/{number:04}.png"]
            names += [f"{label}/again-{number:04}.png"] if number % 23 == 0 else []
            names += [f"{(label + 5) % 10}/other-{number:04}.png"] if number in (7, 8) else []
            for name in names:
                path = folder / source / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png if number not in (100, 300, 500) else png[:40])
    (folder / "before.yaml").write_text(BEFORE)
    (folder / "chaos.yaml").write_text(WHOLE if whole else SMALL + SMALL_PUBLISH)
    return folder / "before.yaml", folder / "chaos.yaml"


def run_build(
    recipe: Path, store: Store, log: Path, *, workers: int, timeout_s: float,
    targets: Sequence[Target] = (), kill_after: Callable[[float], str | None] | None = None,
) -> Build:  # fmt: skip
    """Run `stillroom build` as a person would, and kill it at the first target that it comes to, or by the clock.

    Args:
        log: where its processes write what they do.
        targets: where it kills itself; which of them it was is the result's `target`.
        kill_after: asked some hundred times a second with the seconds since the start; its answer says whom to kill now.

    Raises:
        TimeoutError: it hangs.
    """
    log.touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CHAOS_")}
    paths = [str(SITE), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "CHAOS_LOG": str(log)}
    environment["CHAOS_KILL"] = json.dumps([target._asdict() for target in targets])
    command = [sys.executable, "-c", "from flows.cli.app import main; main()", "build", str(recipe), "--store", store.uri, "--workers", str(workers)]
    with open(log.with_suffix(".out"), "w+") as output:
        # A group of its own, so that all of it can be killed, and counted afterwards.
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        started = time.monotonic()
        try:
            while process.poll() is None:
                elapsed_s = time.monotonic() - started
                if elapsed_s > timeout_s:
                    raise TimeoutError(f"the build hung for {timeout_s:.0f} s, see {log}")
                if kill_after and (whom := kill_after(elapsed_s)):
                    (os.killpg if whom == "machine" else os.kill)(process.pid, signal.SIGKILL)
                    process.wait()
                time.sleep(0.005)
        finally:
            if process.poll() is None:  # it hangs, or somebody stopped us
                os.killpg(process.pid, signal.SIGKILL)
        ended = time.monotonic()
        left = _wait_for_group(process.pid)
        output.seek(0)
        said = output.read()
    noted = events(log)
    target = next((targets[int(event.label)] for event in noted if event.kind == "killed"), None)
    return Build(process.returncode, [event for event in noted if event.kind != "killed"], said, target, round(time.monotonic() - ended, 2), left)


def events(log: Path) -> list[Event]:
    """What a build's processes noted."""
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    return [Event(float(at), int(pid), kind, moment, label) for at, pid, kind, moment, label in lines]


def copy_store(source: Store, target: Store) -> None:
    """Copy a store, object by object: between folders and buckets alike."""
    for key in source.list(""):
        target.put(key, source.read(key) or b"")


def _wait_for_group(group: int) -> list[str]:
    """Wait until no process of a group is left; those that stay too long are told, and killed."""
    until = time.monotonic() + END_WITHIN_S
    while (left := _processes(group)) and time.monotonic() < until:
        time.sleep(0.02)
    if left:
        os.killpg(group, signal.SIGKILL)
    return left


def _processes(group: int) -> list[str]:
    """The processes of a group that have not ended: number, state, where in the system they wait, command."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # After the name, which may hold anything, in brackets: state, parent, group.
            state, _, of_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state not in "ZX":
                command = (folder / "cmdline").read_text().replace("\0", " ")[:120]
                found.append(f"{folder.name} {state} {(folder / 'wchan').read_text()} {command}")
        except OSError:  # it ended while we looked
            continue
    return found
