"""Import this before a room: a script's own folder comes first on the path, and there `storage.py` would hide the room `storage`."""

import sys
from pathlib import Path

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent]
