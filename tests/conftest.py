"""What tests share: stores in folders of their own, one Prefect server a session, hypothesis profiles."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

# Two cores and many small nets: threads would only wait for each other. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["GX_ANALYTICS_ENABLED"] = "false"

# A gate gives one verdict for one commit, so the suite draws the same examples each time; the other profiles and `make fuzz` look further.
settings.register_profile("fast", max_examples=15, deadline=None, derandomize=True)
settings.register_profile("balanced", max_examples=60, deadline=None)
settings.register_profile("expensive", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("STILLROOM_HYPOTHESIS", "fast"))


@pytest.fixture(scope="session", autouse=True)
def _gates_loaded_once() -> None:
    """Great Expectations takes three seconds to load, which each of a hundred builds would pay: here the fork server has it already."""
    from tasks.pool import PRELOAD

    PRELOAD.append("great_expectations")


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


Installing = Callable[..., AbstractContextManager[Path]]


@pytest.fixture(scope="session")
def installing(tmp_path_factory: pytest.TempPathFactory) -> Installing:
    """Installs a distribution of operators for the time of a `with` block, by the entry point as anybody's would be.

    It takes the distribution's name, and for each operator, such as `filter/odd`, the text of its file. What
    comes back is the folder that stands on this process's path.
    """

    @contextmanager
    def install(name: str, operators: Mapping[str, str], entries: Mapping[str, str] | None = None) -> Iterator[Path]:
        from stillroom import registry

        site = tmp_path_factory.mktemp("site")
        entries = entries or {name: f"{name}_operators"}
        for operator, text in operators.items():
            file = site / next(iter(entries.values())) / f"{operator}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[stillroom.operators]\n" + "".join(f"{key} = {package}\n" for key, package in entries.items()))

        def look_again() -> None:
            registry.operators.cache_clear()
            registry.load.cache_clear()

        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.syspath_prepend(str(site))
                look_again()
                yield site
        finally:
            look_again()

    return install


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
