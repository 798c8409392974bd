"""This user's folder: the server's state, the digests of source files, recipes of snapshots to be built again."""

import os
from pathlib import Path

__all__ = ["home"]


def home() -> Path:
    """STILLROOM_HOME or `~/.stillroom`, made if need be, readable by nobody else."""
    folder = Path(os.environ.get("STILLROOM_HOME") or "~/.stillroom").expanduser().absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
