"""What made a table: the versions of the packages that its bits may depend on, and the kind of machine."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from os import cpu_count
from typing import Any

__all__ = ["environment"]

PACKAGES = (
    "stillroom",
    "torch",
    "torchvision",
    "timm",
    "efficientnet-lite-pytorch",
    "diffusers",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "pyarrow",
    "polars",
    "pylance",
    "datasets",
    "prefect",
)


@cache
def environment() -> dict[str, Any]:
    """Python, package versions, machine and cores, read without importing any of them."""
    return {
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "machine": platform.machine(),
        "cores": cpu_count(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
