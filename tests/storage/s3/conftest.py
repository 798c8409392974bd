"""A real S3 server for the session, a proxy that disturbs it, and a place of its own for each test."""

import os
import sys
import uuid
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    """A module of this folder: tests have no packages, so it has no other name."""
    if f"stillroom_tests_s3_{name}" not in sys.modules:
        spec = spec_from_file_location(f"stillroom_tests_s3_{name}", Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[spec.name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules[f"stillroom_tests_s3_{name}"]


weed, faults = _load("weed"), _load("faults")


@pytest.fixture(scope="session")
def weed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The server itself, without anything in the environment."""
    try:
        server = weed.Weed(tmp_path_factory.mktemp("weed"))
    except FileNotFoundError as error:
        pytest.skip(f"no S3 server for these tests: {error}")
    yield server
    server.stop()


@pytest.fixture
def s3(weed_server: object, monkeypatch: pytest.MonkeyPatch) -> str:
    """The uri of an empty store in the bucket, with what is needed to reach it in the environment."""
    _reach(weed_server.environment, monkeypatch)  # type: ignore[attr-defined]
    return f"s3://{weed.BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def proxy(weed_server: object, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A proxy in front of the server; the environment leads through it, and so does every store made in the test."""
    made = faults.FaultyProxy(weed_server.endpoint)  # type: ignore[attr-defined]
    _reach(weed.environment(made.endpoint), monkeypatch)
    yield made
    made.close()


@pytest.fixture
def plan() -> type:
    """The class of a proxy's plans."""
    return faults.Plan  # type: ignore[no-any-return]


def _reach(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
