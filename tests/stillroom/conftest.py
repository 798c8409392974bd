"""Fixtures of the tests of `stillroom`."""

import pytest

import stillroom.replay


@pytest.fixture
def put_kernel(monkeypatch):
    """Put another kernel into replay, as another version has it; what this process knows of its own kernels is forgotten."""

    def put(name, kernel):
        monkeypatch.setattr(stillroom.kernels.geometry, name, kernel)
        stillroom.replay._probes.cache_clear()

    yield put
    stillroom.replay._probes.cache_clear()
