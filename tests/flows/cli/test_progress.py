"""The progress of a build, on a terminal and in a log."""

import io
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

from flows.cli import progress
from flows.cli.progress import LiveProgress, PlainProgress, rows_text
from flows.events import Note, StageDone, StageFailed, StageProgress, StageStarted, StageWaiting


def test_rows_are_shown_in_and_out_where_some_left():
    assert rows_text(144, 1290, 3) == "1,437 → 144"
    assert rows_text(1437, 0, 0) == "1,437"


def test_plain_lines_say_what_began_and_how_it_ended(capsys):
    with PlainProgress() as listener:
        listener(StageStarted("core", "prune.k_medoids", 4))
        listener(StageDone("core", "Built", 144, 1290, 3, 1.25))
        listener(StageStarted("teacher", "train.teacher"))
        listener(StageFailed("teacher", "out of memory"))
    lines = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "core started prune.k_medoids",
        "✓ core Built 1.2 s 1,437 → 144 rows 1,290 dropped, 3 rejected",
        "teacher started train.teacher",
        "✗ teacher Failed",
    ]


def test_a_long_stage_says_how_far_it_is_now_and_then(capsys, monkeypatch):
    clock = iter([0.0, 5.0, 25.0, 30.0])  # begun, and three times of progress
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    listener = PlainProgress()
    listener(StageStarted("painter", "train.class_diffusion"))
    for done in (100, 400, 500):
        listener(StageProgress("painter", done, 1000))
    assert [line.split() for line in capsys.readouterr().err.splitlines()[1:]] == [["painter", "40%"]]


def test_a_stage_that_another_build_makes_says_who(capsys):
    with PlainProgress() as listener:
        listener(StageStarted("teacher", "train.teacher"))
        listener(StageWaiting("teacher", "process 4711 on node-7"))
        listener(StageDone("teacher", "Reused", 1, 0, 0, 0.0))
    assert [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()] == [
        "teacher started train.teacher",
        "teacher waits for another build that makes it (process 4711 on node-7)",
        "· teacher Reused 0.0 s 1 rows",
    ]
    screen = io.StringIO()
    with LiveProgress(Console(file=screen, force_terminal=True, width=160)) as live:
        live(StageStarted("teacher", "train.teacher"))
        live(StageWaiting("teacher", "process 4711 on node-7"))
    assert "waits for another build" in screen.getvalue()


def test_reused_stages_wait_until_something_runs(capsys):
    listener = PlainProgress()
    listener(StageDone("raw", "Reused", 1797))
    assert capsys.readouterr().err == ""
    listener(StageStarted("core", "prune.random"))
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["raw", "started"]


def test_names_cannot_steer_the_terminal(capsys):
    PlainProgress()(Note("\x1b[31m[red]raw[/red]"))
    assert capsys.readouterr().err == "\N{REPLACEMENT CHARACTER}[31m[red]raw[/red]\n"


def test_the_terminal_shows_a_line_a_stage_from_many_threads():
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120, highlight=False, markup=False)

    def run(name: str) -> None:
        listener(StageStarted(name, "prune.random"))
        listener(StageProgress(name, 1, 2))
        listener(StageDone(name, "Built", 10, 5))

    with LiveProgress(console) as listener, ThreadPoolExecutor(4) as pool:
        list(pool.map(run, [f"stage{number}" for number in range(20)]))
    done = [line for line in shown.getvalue().splitlines() if "15 → 10 rows" in line]
    assert len(done) == 20
    assert all(any(f"stage{number} " in line for line in done) for number in range(20))
