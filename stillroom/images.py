"""Images: what stands in encoded bytes, as pixels, with one policy for everything that isn't plain.

The policy, for every reader and writer of stillroom: the format is known by content, never by name;
pictures come upright (EXIF orientation applied); alpha and palette transparency lie over white; a
palette, CMYK or YCbCr becomes RGB by Pillow's formulas, colour profiles ignored; of 16 bits the high
byte is kept; one bit becomes 0 or 255. Grey stays one channel, all else has three; what carried a
palette or alpha always has three. A file with several frames is refused, and so is what has more
pixels than the limit: the header says so before anything is decoded. Nothing here changes a global
setting of Pillow's.
"""

import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from stillroom.errors import InputError
from stillroom.kernels.resizing import resize

__all__ = [
    "MAX_PIXELS",
    "ImageFacts",
    "ImageFault",
    "StoredImage",
    "Truncated",
    "as_stored",
    "decode",
    "decode_batch",
    "encode_png",
    "probe",
    "resize",
    "with_channels",
]

# B = images of a batch, C = channels, H = height, W = width

MAX_PIXELS = 100_000_000
Truncated = Literal["reject", "pad"]

# The classes are called directly, not through `Image.open`: it judges size by a global limit, warns
# on the way there, and would try some forty formats, Ghostscript's among them.
_READERS: dict[str, Callable[[BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "gif": GifImageFile,
    "bmp": BmpImageFile,
    "tiff": TiffImageFile,
    "webp": WebPImageFile,
    "ppm": PpmImageFile,
}
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION_TAG = 274


class ImageFault(ValueError):
    """These bytes can't be used as an image; the text is the reason, fit for a `removed` table."""


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image: size (upright, in pixels), format by content, channels after decoding.

    `orientation` is the EXIF orientation of the bytes, 1 for upright. `plain` says that the bytes as
    they are hold what `decode` gives, so that any other reader agrees.
    """

    width: int
    height: int
    format: str
    channels: int
    orientation: int
    plain: bool


@dataclass(frozen=True)
class StoredImage:
    """An image as a table stores it: bytes, facts, and whether missing pixels were filled in."""

    data: bytes
    facts: ImageFacts
    padded: bool


def probe(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Read what the header says, without decoding the pixels.

    Raises:
        ImageFault: no image, a broken header, several frames, or more than `max_pixels`.
    """
    return _open(data, max_pixels)[1]


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, truncated: Truncated = "reject") -> np.ndarray:
    """Decode an image under the policy at the top of this file.

    Args:
        data: encoded bytes: JPEG, PNG, GIF, BMP, TIFF, WebP or PPM.
        max_pixels: refuse more than these, by the header.
        truncated: "pad" fills what a cut JPEG lacks as libjpeg does (mostly grey); other formats
            that are cut are refused all the same.

    Returns:
        uint8 [H, W, C], C = 1 or 3, upright.

    Raises:
        ImageFault: with the reason.
    """
    if data.startswith(_PNG) and (pixels_HWC := _plain_png(data, max_pixels)) is not None:
        return pixels_HWC
    return _read(data, max_pixels, truncated)[0]


def as_stored(data: bytes, *, max_pixels: int = MAX_PIXELS, truncated: Truncated = "reject") -> StoredImage:
    """Decode an image to see that it is whole, and give the bytes that a table should hold.

    The bytes as found where they are plain; otherwise (orientation, palette, alpha, CMYK, 16 bits,
    filled-in pixels) the decoded pixels as PNG, so that every reader sees what `decode` gives. The
    format stays that of the bytes as found.
    """
    pixels_HWC, facts, padded = _read(data, max_pixels, truncated)
    return StoredImage(data if facts.plain and not padded else encode_png(pixels_HWC), facts, padded)


def encode_png(pixels_HWC: np.ndarray) -> bytes:
    """Encode uint8 [H, W, C], C = 1 or 3, as PNG: equal pixels give equal bytes under one Pillow version."""
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] not in (1, 3):
        raise ValueError(f"uint8 [H, W, 1 or 3] expected, got {pixels_HWC.dtype} {list(pixels_HWC.shape)}")
    out = BytesIO()
    Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC).save(out, "PNG", compress_level=6)
    return out.getvalue()


def decode_batch(values: pa.Array | Sequence[bytes | None], *, channels: int | None = None, side_px: int | None = None) -> np.ndarray:
    """Decode images into one array.

    Args:
        values: B encoded images.
        channels: 1 or 3: colour becomes grey by ITU-R 601 luma, grey is repeated. None: as they are.
        side_px: resize each to this square, whatever its aspect. None: as they are.

    Returns:
        uint8 [B, C, H, W]; for B = 0 the unknown sizes are 1.

    Raises:
        InputError: sizes or channels differ and the argument that would settle it isn't given.
        ImageFault: an image that can't be decoded, with its row.
    """
    decoded: list[np.ndarray] = []
    for row, value in enumerate(values):
        data = value.as_py() if isinstance(value, pa.Scalar) else value
        if data is None:
            raise ImageFault(f"row {row}: no image")
        try:
            pixels_HWC = decode(data)
        except ImageFault as fault:
            raise ImageFault(f"row {row}: {fault}") from fault
        pixels_CHW = _with_channels(pixels_HWC, channels).transpose(2, 0, 1)
        decoded.append(pixels_CHW if side_px is None else resize(pixels_CHW[None], side_px)[0])
        if decoded[row].shape != decoded[0].shape:
            raise _odd_row(row, decoded[row], decoded[0])
    return np.stack(decoded) if decoded else np.zeros((0, channels or 1, side_px or 1, side_px or 1), np.uint8)


def _read(data: bytes, max_pixels: int, truncated: Truncated) -> tuple[np.ndarray, ImageFacts, bool]:
    """Pixels, facts, and whether the end was filled in."""
    image, facts = _open(data, max_pixels)
    try:
        return _pixels(image, facts, data), facts, False
    except _Cut:
        if truncated != "pad" or facts.format != "jpeg":
            raise
    # libjpeg fills the blocks that are missing before an end-of-image marker.
    image, facts = _open(data + b"\xff\xd9", max_pixels)
    return _pixels(image, facts, data), facts, True


def with_channels(pixels_BCHW: np.ndarray, channels: int | None) -> np.ndarray:
    """Images with 1 or 3 channels: colour becomes grey by ITU-R 601 luma, grey is repeated; None leaves them as they are."""
    if channels is None or channels == pixels_BCHW.shape[1]:
        return pixels_BCHW
    count, _, height, width = pixels_BCHW.shape
    rows = _with_channels(pixels_BCHW.transpose(0, 2, 3, 1).reshape(count * height, width, -1), channels)
    return rows.reshape(count, height, width, channels).transpose(0, 3, 1, 2)


def _plain_png(data: bytes, max_pixels: int) -> np.ndarray | None:
    """The pixels of a sound PNG of 8 bits, grey or RGB, with nothing but pixels in it; None for any other, which Pillow's reader judges.

    Most of what Pillow takes for a small image is its reader in Python, not the decoder.
    """
    at, kind, parts = len(_PNG), b"", []
    while len(data) >= at + 12:
        body, kind = at + 8, data[at + 4 : at + 8]
        end = body + int.from_bytes(data[at : at + 4], "big")
        if len(data) < end + 4 or zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return None
        if kind == b"IDAT":
            parts.append(data[body:end])
        elif kind != (b"IHDR" if at == len(_PNG) else b"IEND"):
            return None
        at = end + 4
    width, height, *form = struct.unpack(">IIBBBBB", data[16:29]) if data[8:16] == b"\0\0\0\rIHDR" and len(data) >= 33 else (0, 0)
    if kind != b"IEND" or at != len(data) or form not in ([8, 0, 0, 0, 0], [8, 2, 0, 0, 0]) or not 0 < width * height <= max_pixels:
        return None
    mode = "RGB" if form[1] else "L"
    try:
        image = Image.frombytes(mode, (width, height), b"".join(parts), "zip", mode, 0)
    except (ValueError, OSError):
        return None
    # A bytearray, because who gets pixels may write to them.
    return np.frombuffer(bytearray(image.tobytes()), np.uint8).reshape(height, width, len(mode))


def _open(data: bytes, max_pixels: int) -> tuple[ImageFile.ImageFile, ImageFacts]:
    kind = _sniff(data)
    with _faults(data, kind):
        image = _READERS[kind](BytesIO(data))
        if (pixels := image.width * image.height) > max_pixels:
            raise ImageFault(f"{pixels:,} pixels > limit {max_pixels:,}")
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise ImageFault(f"{frames} frames; one picture expected")
        return image, _facts(image, kind, data)


def _sniff(data: bytes) -> str:
    """The format by the first bytes."""
    if not data:
        raise ImageFault("empty file")
    starts = {b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png", b"GIF87a": "gif", b"GIF89a": "gif", b"II*\0": "tiff", b"MM\0*": "tiff"}
    for start, kind in starts.items():
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        missing = int.from_bytes(data[4:8], "little") + 8 - len(data)
        if missing > 0:  # libwebp doesn't say so
            raise _Cut(f"truncated image ({missing:,} bytes missing)")
        return "webp"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in (12, 40, 52, 56, 64, 108, 124):  # sizes of its header
        return "bmp"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "ppm"
    raise ImageFault("not an image (jpeg, png, gif, bmp, tiff, webp or ppm expected)")


class _Cut(ImageFault):
    """The data ends before the picture does."""


@contextmanager
def _faults(data: bytes, kind: str) -> Iterator[None]:
    """Turn what Pillow raises into an `ImageFault`, and keep its warnings quiet meanwhile."""
    try:
        with _QUIET:
            yield
    except (ImageFault, MemoryError):
        raise
    # Pillow's readers raise nearly anything on hostile bytes: OSError, SyntaxError, struct.error, KeyError …
    except Exception as error:
        said = str(error).split("\n", 1)[0]
        if "truncated" in said.lower() or "not enough image data" in said or isinstance(error, EOFError):
            raise _Cut(f"truncated image (bytes missing after {len(data):,})") from error
        raise ImageFault(f"broken {kind}: {said or type(error).__name__}") from error


class _Quiet:
    """Silences Pillow's warnings (broken EXIF and the like) while any thread is inside.

    `warnings.catch_warnings` alone isn't safe with threads: the first in saves, the last out restores.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


_QUIET = _Quiet()


def _facts(image: ImageFile.ImageFile, kind: str, data: bytes) -> ImageFacts:
    # Asked before the pixels are loaded: Pillow then forgets raw modes. A TIFF's size is upright already.
    deep, orientation = _is_16_bit(image), _orientation(image, data)
    width, height = image.size[::-1] if orientation >= 5 and kind != "tiff" else image.size
    covered = image.mode == "P" or image.has_transparency_data
    grey = not covered and (image.mode in ("1", "L") or _is_deep_grey(image))
    plain = orientation == 1 and not covered and not deep and image.mode in ("L", "RGB")
    return ImageFacts(width, height, kind, 1 if grey else 3, orientation, plain)


def _is_deep_grey(image: ImageFile.ImageFile) -> bool:
    # Pillow gives a PPM of more than 8 bits as mode I, scaled to 0 to 65,535.
    return image.mode.startswith("I;16") or (image.mode == "I" and isinstance(image, PpmImageFile))


def _is_16_bit(image: ImageFile.ImageFile) -> bool:
    # Pillow drops the low byte of 16-bit colour as it loads: only the raw mode of its tiles tells.
    arguments = [part for tile in image.tile for part in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))]
    return any(isinstance(part, str) and "16" in part for part in arguments)


def _orientation(image: ImageFile.ImageFile, data: bytes) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or it makes no sense.

    Read here because Pillow's EXIF reader parses (and may choke on) every tag for the sake of one.
    """
    if isinstance(image, TiffImageFile):
        value = image.tag_v2.get(_ORIENTATION_TAG, 1)
        return value if value in range(1, 9) else 1
    if isinstance(image, PngImageFile) and "exif" not in image.info and b"eXIf" in data:
        image.load()  # the chunk stands behind the pixels
    exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if exif[:2] == b"II" else "big"
    start = int.from_bytes(exif[4:8], order)
    count = int.from_bytes(exif[start : start + 2], order)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(exif)), 12):
        if int.from_bytes(exif[entry : entry + 2], order) == _ORIENTATION_TAG:
            value = int.from_bytes(exif[entry + 8 : entry + 10], order)
            return value if value in range(1, 9) else 1
    return 1


def _pixels(image: ImageFile.ImageFile, facts: ImageFacts, data: bytes) -> np.ndarray:
    """Load an image; uint8 [H, W, C], upright."""
    with _faults(data, facts.format):
        image.load()
        pixels_HWC = _in_8_bits(image)
    # Pillow turns TIFFs by itself as they load.
    return pixels_HWC if facts.format == "tiff" else _turned(pixels_HWC, facts.orientation)


def _in_8_bits(image: ImageFile.ImageFile) -> np.ndarray:
    """A loaded image as uint8 [H, W, C], as it lies."""
    if image.mode == "P" or image.has_transparency_data:
        if _is_deep_grey(image):
            raise ImageFault("16-bit grey with a transparent value isn't supported")
        layer = image.convert("RGBA")
        flat = Image.new("RGB", image.size, (255, 255, 255))
        flat.paste(layer, mask=layer.getchannel("A"))
        return np.array(flat)
    if _is_deep_grey(image):
        return (np.array(image) >> 8).astype(np.uint8)[..., None]
    if image.mode in ("1", "L"):
        return np.array(image.convert("L"))[..., None]
    if image.mode in ("RGB", "RGBX", "CMYK", "YCbCr"):
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    raise ImageFault(f"pixels of Pillow's mode {image.mode} have no stated range in 8 bits")


def _turned(pixels_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """Upright pixels; the eight cases of EXIF 2.32, table of tag 274."""
    if orientation in (5, 6, 7, 8):
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    down, right = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(orientation, (1, 1))
    return np.ascontiguousarray(pixels_HWC[::down, ::right])


def _with_channels(pixels_HWC: np.ndarray, channels: int | None) -> np.ndarray:
    if channels is None or channels == pixels_HWC.shape[2]:
        return pixels_HWC
    if channels == 3:
        return np.repeat(pixels_HWC, 3, axis=2)
    # ITU-R 601-2 luma in 16-bit fixed point, as Pillow's convert("L").
    luma = pixels_HWC.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((luma + 0x8000) >> 16).astype(np.uint8)[..., None]


def _odd_row(row: int, odd_CHW: np.ndarray, first_CHW: np.ndarray) -> InputError:
    if odd_CHW.shape[1:] != first_CHW.shape[1:]:
        (height, width), (first_height, first_width) = odd_CHW.shape[1:], first_CHW.shape[1:]
        return InputError("images", f"row {row} has {width}x{height} pixels, row 0 has {first_width}x{first_height}", "give side_px, and all are resized to it")
    return InputError("images", f"row {row} has {odd_CHW.shape[0]} channels, row 0 has {first_CHW.shape[0]}", "give channels: 1 or 3")
