"""What the other tools' stages do with a picture; it runs in their virtual environment."""

import hashlib
import io

from PIL import Image


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def split_of(name: str) -> str:
    part = int(name[:4], 16) / 0x10000
    return "test" if part < 0.1 else "validation" if part < 0.2 else "train"


def is_kept(name: str) -> bool:
    return int(name[-4:], 16) < 0.9 * 0x10000


def decodes(data: bytes) -> bool:
    Image.open(io.BytesIO(data)).load()
    return True


def looks(data: bytes) -> str:
    """The difference hash: 64 bits of whether a pixel is darker than its right neighbour."""
    grey = Image.open(io.BytesIO(data)).convert("L").resize((9, 8)).tobytes()
    return "".join(str(int(grey[at] < grey[at + 1])) for at in range(72) if at % 9 < 8)
