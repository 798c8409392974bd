"""What tests share: stores in folders of their own, one Prefect server a session, hypothesis profiles."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Two cores and many small nets: threads would only wait for each other. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

settings.register_profile("fast", max_examples=15, deadline=None)
settings.register_profile("balanced", max_examples=60, deadline=None)
settings.register_profile("expensive", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("STILLROOM_HYPOTHESIS", "fast"))


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the person who runs the tests is read or changed."""
    home = tmp_path_factory.mktemp("home")
    before = {name: os.environ.pop(name, None) for name in ("STILLROOM_HOME", "STILLROOM_STORE", "PREFECT_API_URL", "PREFECT_HOME")}
    os.environ["STILLROOM_HOME"] = str(home)
    yield
    from flows.server import stop_server

    os.environ["STILLROOM_HOME"] = str(home)
    stop_server()
    for name, value in before.items():
        if value is not None:
            os.environ[name] = value


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store's folder that isn't there yet."""
    return tmp_path / "store"


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a recipe's text to a file of its own and returns the path."""

    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write
