"""A first recipe for a data set, with a remark on every choice, so that a person can go on from it."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from flows.look import Found
from stillroom.errors import InputError

__all__ = ["recipe_name", "recipe_text", "summary"]

# Teachers and students work on squares of at most this side: larger ones take hours on a processor.
MAX_SIDE_PX = 64
# Below this side a perceptual hash takes different pictures for twins.
MIN_HASH_SIDE_PX = 64
# Below it, images are most often digits, letters or icons, which lose their meaning when mirrored.
MIN_FLIP_SIDE_PX = 32
REMARK_AT = 34

Line = str | tuple[str, str]


def recipe_name(path: Path) -> str:
    """A name for the recipe, after the folder or file; `dataset` where nothing of it can stay."""
    stem = path.absolute().stem if path.is_file() else path.absolute().name
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:64].rstrip("-") or "dataset"


def recipe_text(found: Found, out: Path) -> str:
    """The recipe for what was found, as the file `out` is to hold it.

    Labelled images get the whole road: teacher, scores, selection, reinforcement, proof. Images without
    labels are cleaned and thinned out by how they look; without images there is a split alone.

    Raises:
        InputError: the path can't stand in a recipe.
    """
    blocks: list[Sequence[Line]] = [[*_head(found, out), *_ingest(found, out)], _split(found)]
    if found.width_px:
        blocks.append(_clean(found))
        blocks += [_teacher(found), _select(found), _reinforce(found), _proof(found)] if found.classes else [_select(found)]
    blocks.append(_publish(found))
    return "\n\n".join("\n".join(_line(line) for line in block) for block in blocks) + "\n"


def _line(line: Line) -> str:
    """A line, its remark in a column of remarks where there is room."""
    if isinstance(line, str):
        return line
    text, remark = line
    return f"{text.ljust(REMARK_AT)}  # {remark}"


def _head(found: Found, out: Path) -> list[Line]:
    file = _printable(shlex.quote(out.name))
    return [
        f"# Written by `stillroom init` for what stands in {_quoted(str(found.path))}:",
        f"# {summary(found)}.",
        f"# `stillroom plan {file}` says what would run, `stillroom build {file}` builds it; add `--rows 500` for a trial.",
        "",
        (f"name: {recipe_name(found.path)}", "snapshots are called by it: NAME@1, NAME@2 …"),
        ("seed: 7", "every random choice is made from it"),
        "",
        "stages:",
    ]  # fmt: skip


def summary(found: Found) -> str:
    """What was found, in a sentence without its full stop."""
    what = f"{found.rows:,} {'files' if found.op == 'ingest.image_folder' else 'rows'}"
    if found.classes:
        shown = ", ".join(_printable(name) for name in found.classes[:8]) + (", …" if len(found.classes) > 8 else "")
        what += f" in {len(found.classes)} classes ({shown})"
    if found.splits:
        what += f", split into {', '.join(found.splits)}"
    if found.width_px and found.height_px:
        colour = "colour" if found.channels == 3 else "grey"
        what += f", {colour} images of {_range(found.width_px)} x {_range(found.height_px)} pixels"
    return what


def _printable(name: str) -> str:
    """A name on one line: a folder may be called anything, a line break included, and this goes into a remark."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)


def _range(ends: tuple[int, int]) -> str:
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _ingest(found: Found, out: Path) -> list[Line]:
    lines: list[Line] = [
        "  # Read the data. Images stay encoded as they are; broken ones are set aside with the reason.",
        "  raw:",
        f"    op: {found.op}",
        (f"    path: {_path(found.path, out)}", "relative paths start at this file's folder"),
    ]
    if found.op == "ingest.parquet":
        roles = ", ".join(f"{role}: {_quoted(name)}" for role, name in found.columns.items())
        lines.append((f"    columns: {{{roles}}}", "which column plays which role; all others pass through"))
        lines.append((f"    id: {_quoted(found.id)}", "how a sample is known: by its content, or by a column"))
        return lines
    if found.classes:
        lines.append(("    layout: class_folders", "a folder a class; if the folders mean something else: flat"))
    else:
        lines.append(("    layout: flat", "no labels; with a folder a class: class_folders"))
    if found.splits:
        lines.append(("    splits: folders", "the topmost folders are the splits"))
    lines.append(("    id: content", "a sample is known by its bytes, wherever the file moves"))
    return lines


def _split(found: Found) -> list[Line]:
    missing = [split for split in ("validation", "test") if split not in found.splits]
    shares = ", ".join(f"{split}: 10%" for split in missing)
    if not found.splits:
        return [
            "  # By the hash of each sample's id, so a row keeps its split when the data grows.",
            "  # Pictures of one person or one scene belong together: say by which column with `group:`.",
            "  split:",
            "    op: table.split",
            "    from: raw",
            ("    validation: 10%", "tunes and checks"),
            ("    test: 10%", "judges, once; nothing that trains may read it"),
        ]
    lines: list[Line] = [
        "  # The data's own splits" + (", and what they lack is taken from train." if missing else "."),
        "  split:",
        "    op: table.split",
        "    from: raw",
    ]
    lines.append(("    given: {column: split}", "which split a row is in says this column"))
    lines += [(f"    {share}", "by the hash of each sample's id") for share in shares.split(", ") if share]
    return lines


def _clean(found: Found) -> list[Line]:
    lines: list[Line] = [
        "  # Of equal pictures one stays. A test row never leaves; its twin in train does, so nothing leaks.",
        "  unique: {op: filter.exact_duplicates, from: split}",
        "  clean:",
        "    op: filter.near_duplicates",
        "    from: unique",
        ("    max_distance: 4", "most of 64 bits by which the hashes of twins differ"),
    ]
    if _smallest_px(found) < MIN_HASH_SIDE_PX:
        lines.append(("    mode: tag", "images this small look alike to the hash: tag twins, drop none"))
    return lines


def _teacher(found: Found) -> list[Line]:
    steps = _steps(found, epochs=15, most=3000)
    flip = "true" if _flips(found) else "false"
    return [
        "  # Who labels and judges. A model of your own is better: `stillroom ops ingest.model`.",
        "  teacher:",
        "    op: train.teacher",
        "    from: {samples: clean.train, check_on: clean.validation}",
        (f'    net: "{_net(found)}"', "or resnet18, or timm/<name>, untrained"),
        *_size(found, "    "),
        (f"    steps: {steps}", f"of 64 images each: about {max(1, round(steps * 64 / _train_rows(found)))} epochs"),
        ("    seeds: 2", "members of the ensemble; their mean is the teacher"),
        (f"    augment: {{flip: {flip}}}", "mirroring is wrong for digits, letters, left and right"),
    ]


def _select(found: Found) -> list[Line]:
    remark = "as many of each class" if found.classes else "there are no classes to balance"
    return [
        "  # What each image looks like, as a vector.",
        "  looks:",
        "    op: score.embed",
        "    from: clean.train",
        ("    net: pixels", "or timm/<name>"),
        *_size(found, "    "),
        "",
        "  # Which images stay: those that the others are nearest to." + ("" if found.classes else " Labels would allow a teacher and a proof."),
        "  core:",
        "    op: prune.k_medoids",
        "    from: looks",
        "    vectors: embedding",
        ("    keep: 30%", "of the training rows"),
        (f"    balance: {'label' if found.classes else 'none'}", remark),
    ]


def _reinforce(found: Found) -> list[Line]:
    policy, remark = (
        ("[identity, crop, flip]", "view 0 is the plain image")
        if _flips(found)
        else ("[identity, affine]", "small shifts, turns, scalings; nothing is mirrored")
    )
    return [
        "  # Views of each image, stored as numbers, with what the teacher says of each.",
        "  reinforced:",
        "    op: reinforce.teacher",
        "    from: {samples: core, teacher: teacher, check_on: clean.validation}",
        "    views:",
        ("      count: 8", "views an image"),
        (f"      policy: {policy}", remark),
        (f"      side_px: {_side_px(found)}", "side of every view"),
        ("    top_k: 10", "classes kept in a label"),
    ]


def _proof(found: Found) -> list[Line]:
    return [
        "  # Is it worth it? The same student on all data, on the result, and on a random choice of equal size.",
        "  proof:",
        "    op: evaluate.student",
        "    from: {candidate: reinforced, raw: clean.train, tune: clean.validation, test: clean.test}",
        ("    control: {in_place_of: core, pool: clean.train}", "made and trained like the result, but chosen at random"),
        "    student:",
        "      net: cnn",
        *_size(found, "      "),
        (f"      steps: {_steps(found, epochs=10, most=2000)}", "the same for every arm, however many images it has"),
        "      batch_size: 64",
        ("      learning_rates: [0.003, 0.01]", "tried on validation, for each arm"),
        ("      seeds: 5", "students an arm; the table shows their interval"),
    ]


def _publish(found: Found) -> list[Line]:
    rest = "clean" if found.width_px else "split"
    train = "reinforced" if found.width_px and found.classes else "core" if found.width_px else "split.train"
    percent = max(1, -(-150 * found.unusable // 1))
    rejects = f"about {found.unusable:.1%} were found: {found.stray}" if found.unusable else "broken files among all that are read"
    lines: list[Line] = [
        "publish:",
        ("  splits:", "what a trainer opens"),
        f"    train: {train}",
        f"    validation: {rest}.validation",
        f"    test: {rest}.test",
        ("  require:", "else nothing is published"),
        ("    max_leaks: 0", "pictures of train in validation or test"),
        (f"    max_rejects: {percent:.0f}%", rejects),
    ]
    if found.classes and found.width_px:
        lines.append(("  promote: {min_gain_over_control: 0}", "what `open(NAME)` returns must beat chance: the interval's lower end"))
    return lines


def _size(found: Found, indent: str) -> list[Line]:
    same = found.width_px == found.height_px == (_side_px(found), _side_px(found))
    return [
        (f"{indent}side_px: {_side_px(found)}", "the images' own" if same else "images are resized to this square"),
        (f"{indent}channels: {found.channels}", "colour" if found.channels == 3 else "grey"),
    ]


def _side_px(found: Found) -> int:
    """A square that suits the smaller images, a multiple of 8 where they are larger than 16."""
    side = min(_smallest_px(found), MAX_SIDE_PX)
    return max(8, side if side <= 16 or found.width_px == found.height_px == (side, side) else side // 8 * 8)


def _smallest_px(found: Found) -> int:
    return min(found.width_px[0], found.height_px[0]) if found.width_px and found.height_px else 0


def _flips(found: Found) -> bool:
    return found.channels == 3 and _smallest_px(found) >= MIN_FLIP_SIDE_PX


def _net(found: Found) -> str:
    return "cnn:32" if _side_px(found) <= 32 else "convnet3:64"


def _train_rows(found: Found) -> int:
    return max(1, round(0.8 * found.rows))


def _steps(found: Found, epochs: int, most: int) -> int:
    """Steps of 64 images for so many epochs, in hundreds, 200 at least."""
    return min(most, max(200, round(_train_rows(found) * epochs / 64 / 100) * 100))


def _path(path: Path, out: Path) -> str:
    """The path as the recipe says it: relative to the recipe where it lies below its folder."""
    path, folder = path.absolute(), out.absolute().parent
    text = (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
    if "${" in text:
        raise InputError(
            str(path), "has '${' in its name, which means something else in a recipe", "rename it, or put the path into a variable and write ${env:NAME}"
        )
    return _quoted(text)


def _quoted(text: str) -> str:
    """Text as YAML, in quotes where it could be read as something else."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(repr(text), "isn't UTF-8, and a recipe is", "rename it, or give `init` a link to it") from None
    return (
        text if re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./-]*", text) and text.lower() not in ("null", "true", "false") else json.dumps(text, ensure_ascii=False)
    )
