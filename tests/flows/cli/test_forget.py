"""forget and rebuild on the command line: what is printed, what a program gets, and that errors are a line."""

import json


def test_forget_says_what_went_and_which_snapshots_were_withdrawn(stillroom, tiny):
    store = ["--store", tiny]
    planned = stillroom("forget", "2", "--dry-run", *store)
    assert planned.stdout.startswith("1 sample would be forgotten: 1 table version, ") and planned.stdout.endswith("; withdrawn: pets@1\n")
    assert "withdrawn" not in stillroom("snapshots", *store, "--json").stdout.replace('"withdrawn": false', "")
    done = stillroom("forget", "2", "5", "--reason", "request 17", *store)
    assert done.stdout.startswith("2 samples forgotten: 1 table version, ") and done.exit_code == 0
    assert json.loads(stillroom("snapshots", *store, "--json").stdout)[0]["withdrawn"] is True
    assert stillroom("forget", "2", *store).stdout == "nothing to do: all of it was forgotten before\n"


def test_forget_as_json_is_the_receipt_and_what_to_look_after(stillroom, tiny, tmp_path):
    assert stillroom("export", "pets@1", tmp_path / "out", "--store", tiny).exit_code == 0
    found = json.loads(stillroom("forget", "2", "--store", tiny, "--json").stdout)
    assert (found["snapshots"], found["receipts"][0]["rows"], found["rebuilt"]) == (["pets@1"], 1, None)
    assert [(seen["kind"], seen["what"]) for seen in found["seen"]] == [("export", f"{tmp_path / 'out'} (pets@1, parquet)")]


def test_what_names_no_sample_is_a_line(stillroom, tiny):
    ended = stillroom("forget", "7", "--store", tiny)
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr == f"error: '7': is no sample of {tiny}; give an id, its beginning, a source as `stillroom explain` shows it, or the picture\n"


def test_rebuild_needs_an_empty_store(stillroom, tiny):
    ended = stillroom("rebuild", "pets@1", "--store-from", tiny, "--into", tiny, "--json")
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr == f"error: {tiny}: isn't empty, and what is there would be taken instead of made; name a folder that isn't there yet\n"
