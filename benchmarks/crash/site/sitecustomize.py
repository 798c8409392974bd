"""Watches what a build does to its store, and kills it at a chosen moment. `benchmarks/chaos.py` puts this folder on PYTHONPATH.

Every process of the build runs it: the one that was started, the fork server, the workers. It wraps
functions of Lance, of the store and of the workers' jobs as their modules are loaded, so that nothing
of stillroom knows of it. Each call is two lines in a log that all processes share:

    <time> <pid> <kind> <moment> <label>        1764056001.25  4711  commit  before  stages/chaos.clean

The environment says what to do: `CHAOS_LOG` is the log; `CHAOS_KILL` is a JSON list of moments to die
at, whichever comes first: each has kind, moment and label, `nth` (how many equal lines come before it),
and `who` dies: `build` is the process that was started, whose workers have to notice; `machine` is all
of them at once. The last line then is `killed`, who, and the place in the list.
"""

import fcntl
import functools
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

WANTED: list[dict[str, Any]] = json.loads(os.environ.get("CHAOS_KILL", "[]"))
OF_UNITS = ("unit_job", "rows_job")
KINDS = {"runs": "run log", "published": "published", "promoted": "promotion", "leases": "lease", "beats": "beat", "store.json": "format"}


def hit(kind: str, moment: str, label: str) -> None:
    """Note a moment, and die if it is one of those."""
    ours = f"\t{kind}\t{moment}\t{label}\n"
    with open(os.environ["CHAOS_LOG"], "a+b", buffering=0) as log:
        # Counting and writing in one: two workers must not both be the nth.
        fcntl.flock(log, fcntl.LOCK_EX)
        for place, wanted in enumerate(WANTED):
            if [kind, moment, label] == [wanted["kind"], wanted["moment"], wanted["label"]]:
                log.seek(0)
                if log.read().decode().count(ours) == wanted["nth"]:
                    log.write(f"{_stamp()}{ours}{_stamp()}\tkilled\t{wanted['who']}\t{place}\n".encode())
                    _die(wanted["who"])
        log.write(f"{_stamp()}{ours}".encode())


def _stamp() -> str:
    return f"{time.time():.4f}\t{os.getpid()}"


def _die(who: str) -> None:
    if who == "machine":
        os.killpg(0, signal.SIGKILL)
    os.kill(int(os.environ["CHAOS_MAIN"]), signal.SIGKILL)
    # A worker goes no further than this: what it does after its parent's death is for the kills by the clock.
    time.sleep(600)


@contextmanager
def around(kind: str, label: str) -> Iterator[None]:
    """Note the moments before and after."""
    hit(kind, "before", label)
    yield
    hit(kind, "after", label)


def watched(function: Callable[..., Any], name: Callable[..., tuple[str, str]]) -> Callable[..., Any]:
    """The function with a note before and after each call; `name` makes kind and label from its arguments."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        with around(*name(*args, **kwargs)):
            return function(*args, **kwargs)

    return called


def _table(uri: Any) -> str:
    return str(getattr(uri, "uri", uri)).removesuffix(".lance").split("/store/")[-1]


def _key_kind(key: str) -> str:
    first, _, rest = key.partition("/")
    if first == "work":
        return "checkpoint" if "/checkpoints/" in rest else "rows of a unit" if key.endswith(".arrow") else "note of a part"
    if key.endswith(".leaves"):
        return "leaves"
    if first == "records":
        return "units of a source" if key.endswith(".units") else "record"
    if first == "snapshots":
        return "report" if key.endswith(".html") else "manifest"
    return KINDS.get(first, first)


def _of_key(store: Any, key: str, *_: Any, **__: Any) -> tuple[str, str]:
    first = key.partition("/")[0]
    # Runs, beats and generations of leases have other names in every build.
    label = f"{first}/…" if first in ("runs", "beats") else key.rpartition("/")[0] if first == "leases" else key
    return _key_kind(key), label


def watch_store(module: ModuleType) -> None:
    """Small objects: each put by its key, and checkpoints that are read again."""
    store = module.Store
    store.put, store.create = watched(store.put, _of_key), watched(store.create, _of_key)
    store.delete = watched(store.delete, lambda store, prefix: ("clearing", prefix))
    read = store.read

    @functools.wraps(read)
    def reading(self: Any, key: str) -> bytes | None:
        found: bytes | None = read(self, key)
        if "/checkpoints/" in key and found is not None:
            hit("checkpoint", "read", key)
        return found

    store.read = reading


def watch_fragments(module: ModuleType) -> None:
    """Data files: before, after, and whenever Lance asks for more rows."""
    import pyarrow as pa

    write = module.write_fragments

    @functools.wraps(write)
    def writing(data: Any, uri: Any, *args: Any, **kwargs: Any) -> Any:
        def counted() -> Iterator[pa.RecordBatch]:
            for batch in data:
                yield batch
                hit("write", "inside", _table(uri))

        source = pa.RecordBatchReader.from_batches(data.schema, counted()) if isinstance(data, pa.RecordBatchReader) else data
        with around("write", _table(uri)):
            return write(source, uri, *args, **kwargs)

    module.write_fragments = writing


def watch_tables(module: ModuleType) -> None:
    """Tables: their creation, commits and tags."""
    module.write_dataset = watched(module.write_dataset, lambda data, uri, *_, **__: ("new table", _table(uri)))
    module.LanceDataset.commit = staticmethod(watched(module.LanceDataset.commit, lambda uri, *_, **__: ("commit", _table(uri))))

    def tagged(tags: Any, tag: str, *_: Any, **__: Any) -> tuple[str, str]:
        return ("tag" if tag.startswith("v") else "pin"), tag

    module.Tags.create, module.Tags.update = watched(module.Tags.create, tagged), watched(module.Tags.update, tagged)


def watch_jobs(module: ModuleType) -> None:
    """Jobs of workers, by what they make: `<function> <fingerprint> <stage> <unit or rows>`."""

    def named(function: str) -> Callable[..., tuple[str, str]]:
        def name(spec: Any, *args: Any) -> tuple[str, str]:
            if isinstance(spec, str):
                return "job", f"{function} {args[0].fingerprint} {args[0].name}"
            made = spec.scores_fingerprint if function in OF_UNITS and spec.scores_fingerprint else spec.fingerprint
            part = args[0].name if args and hasattr(args[0], "name") else "-".join(str(arg) for arg in args if isinstance(arg, int))
            again = "again" if function == "source_job" and args[1] else ""
            return "job", " ".join(filter(None, [function, made, spec.stage, part, again]))

        return name

    for function in module.__all__:
        # A worker finds a job by its module and name, and so finds the wrapper, in its own module.
        setattr(module, function, watched(getattr(module, function), named(function)))


WATCHED = {"stillroom.stores": watch_store, "lance.fragment": watch_fragments, "lance.dataset": watch_tables, "tasks.jobs": watch_jobs}


class _Watcher(importlib.abc.MetaPathFinder):
    """Wraps a module's functions once it is loaded."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        watch = WATCHED.get(name)
        spec = importlib.machinery.PathFinder.find_spec(name, path) if watch else None
        if watch is None or spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def loading(module: ModuleType) -> None:
            load(module)
            watch(module)

        spec.loader.exec_module = loading  # type: ignore[method-assign]
        return spec


if "CHAOS_LOG" in os.environ:
    os.environ.setdefault("CHAOS_MAIN", str(os.getpid()))
    sys.meta_path.insert(0, _Watcher())
