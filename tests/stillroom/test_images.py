"""Images against Pillow where Pillow is right, and against the stated policy where it leaves a choice."""

import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from stillroom import images
from stillroom.errors import InputError
from stillroom.images import ImageFault, as_stored, decode, decode_batch, encode_png, probe, resize

NOISE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, colour, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(extra) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels_and_are_stored_as_found(kind):
    data = encoded(Image.fromarray(NOISE), kind)
    assert np.array_equal(decode(data), NOISE)
    assert as_stored(data).data == data
    facts = probe(data)
    assert (facts.width, facts.height, facts.format, facts.channels) == (24, 16, kind.lower(), 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_orientation_comes_upright_as_pillow_turns_it(kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(Image.fromarray(NOISE), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    assert np.array_equal(decode(data), upright)
    stored = as_stored(data)
    assert (stored.facts.width, stored.facts.height) == ((24, 16) if orientation < 5 else (16, 24))
    assert stored.facts == probe(data)
    assert stored.facts.format == kind.lower()
    assert (stored.data == data) == (orientation == 1)
    # Whoever ignores EXIF sees the same.
    assert np.array_equal(np.asarray(Image.open(BytesIO(stored.data))), upright)


def test_an_orientation_behind_the_pixels_of_a_png_counts():
    exif = Image.Exif()
    exif[274] = 6
    plain = encoded(Image.fromarray(NOISE), "PNG")
    late = plain[:-12] + png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + plain[-12:]
    assert np.array_equal(decode(late), np.rot90(NOISE, -1))
    assert (probe(late).width, probe(late).height) == (16, 24)


def test_alpha_lies_over_white_and_gives_three_channels():
    rgba = np.random.default_rng(1).integers(0, 256, (5, 7, 4), np.uint8)
    colour, alpha = rgba[..., :3].astype(float), rgba[..., 3:].astype(float)
    expected = np.rint((colour * alpha + 255 * (255 - alpha)) / 255)
    assert np.array_equal(decode(encoded(Image.fromarray(rgba), "PNG")), expected)
    grey_alpha = np.array([[[0, 0], [0, 255]], [[100, 128], [255, 7]]], np.uint8)
    assert decode(encoded(Image.fromarray(grey_alpha), "PNG")).tolist() == [[[255] * 3, [0] * 3], [[177] * 3, [255] * 3]]


def test_a_palette_with_transparent_entries_lies_over_white():
    image = Image.new("P", (2, 2))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1, 0, 1])
    data = encoded(image, "PNG", transparency=bytes([255, 0]))
    assert decode(data).tolist() == [[[255, 0, 0], [255, 255, 255]]] * 2
    assert as_stored(data).data != data


@pytest.mark.parametrize(("mode", "key", "rows"), [("L", 7, [7, 8]), ("RGB", (7, 7, 7), [(7, 7, 7), (8, 8, 8)])])
def test_a_transparent_colour_becomes_white(mode, key, rows):
    image = Image.new(mode, (2, 1))
    image.putdata(rows)
    assert decode(encoded(image, "PNG", transparency=key)).tolist() == [[[255] * 3, [8] * 3]]


@pytest.mark.parametrize("colour", [0, 2])
def test_of_sixteen_bits_the_high_byte_is_kept(colour):
    samples = 1 if colour == 0 else 3
    values = np.array([0x00FF, 0x0100, 0x7FFF, 0xFFFF] * samples, ">u2").reshape(samples, 4).T
    data = png(4, 1, 16, colour, b"\0" + values.tobytes())
    assert decode(data).tolist() == [(values >> 8).tolist()]
    assert not probe(data).plain


def test_cmyk_and_one_bit_become_plain():
    cmyk = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    assert abs(decode(encoded(cmyk, "JPEG", quality=100)).astype(int) - [0, 255, 255]).max() <= 2
    bits = Image.fromarray(np.eye(4, dtype=bool))
    assert np.array_equal(decode(encoded(bits, "PNG"))[..., 0], 255 * np.eye(4))


def test_a_cut_jpeg_is_refused_unless_padding_is_asked_for():
    whole = encoded(Image.fromarray(np.full((64, 64, 3), 250, np.uint8)), "JPEG", quality=95, subsampling=0)
    noisy = encoded(Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    cut = noisy[: len(noisy) * 6 // 10]
    with pytest.raises(ImageFault, match=rf"^truncated image \(bytes missing after {len(cut):,}\)$"):
        decode(cut)
    padded = as_stored(cut, truncated="pad")
    assert padded.padded
    assert padded.facts.format == "jpeg"
    kept = np.array_equal(decode(padded.data)[:16], decode(noisy)[:16])
    assert kept, "the rows before the cut are the picture's own"
    assert not as_stored(whole, truncated="pad").padded


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_other_cut_formats_are_refused_even_with_padding(kind):
    data = encoded(Image.fromarray(NOISE), kind)
    with pytest.raises(ImageFault, match=r"truncated|broken"):
        decode(data[: len(data) * 6 // 10], truncated="pad")


def test_a_bomb_is_refused_by_its_header_in_little_memory(tmp_path):
    bomb = tmp_path / "bomb.png"
    packer, row = zlib.compressobj(1), b"\0" * 14001
    pixels = b"".join(packer.compress(row) for _ in range(13000)) + packer.flush()
    header = (14000).to_bytes(4, "big") + (13000).to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b""))
    program = (
        "import re, sys; from pathlib import Path; from stillroom.images import ImageFault, decode\n"
        "try: decode(Path(sys.argv[1]).read_bytes())\n"
        "except ImageFault as fault: print(fault)\n"
        # Not ru_maxrss: a child begins with its parent's.
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])"
    )
    reason, peak_kb = subprocess.run([sys.executable, "-c", program, bomb], capture_output=True, text=True, check=True).stdout.splitlines()
    assert reason == "182,000,000 pixels > limit 100,000,000"
    assert int(peak_kb) < 300_000


def test_the_limit_is_a_parameter_both_ways():
    data = encoded(Image.new("L", (20, 10)), "PNG")
    assert decode(data, max_pixels=200).shape == (10, 20, 1)
    with pytest.raises(ImageFault, match="200 pixels > limit 199"):
        probe(data, max_pixels=199)
    assert Image.MAX_IMAGE_PIXELS == 89_478_485, "Pillow's own limit is left alone"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"just text", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not an image"),
        (b"\x89PNG\r\n\x1a\nrubbish", "broken png|truncated"),
        (b"\xff\xd8\xff\xe0", "broken jpeg|truncated"),
        (b"BMW is a car maker, " * 9, "not an image"),
    ],
)
def test_what_is_no_image_says_so(data, reason):
    with pytest.raises(ImageFault, match=reason):
        decode(data)


def test_an_animation_is_refused():
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 90, 180)]
    with pytest.raises(ImageFault, match="3 frames; one picture expected"):
        probe(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))


@given(st.binary(max_size=60), st.integers(0, 700))
def test_damage_is_a_fault_or_a_picture_and_never_another_error(rubbish, at):
    data = encoded(Image.fromarray(NOISE), "JPEG")
    at = min(at, len(data))
    try:
        assert decode(data[:at] + rubbish + data[at + len(rubbish) :]).dtype == np.uint8
    except ImageFault as fault:
        assert str(fault)


def test_pillow_does_not_warn_through_us_and_the_filters_stay_as_they_were():
    bad_profile = png(1, 1, 8, 0, b"\0\7", png_chunk(b"iCCP", b"x\0\0not zlib"))
    # An EXIF block whose one entry points behind its end: Pillow warns on it.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + bytes.fromhex("1a01 0500 01000000 ff000000") + b"\0\0\0\0"
    bad_exif = encoded(Image.fromarray(NOISE), "JPEG", exif=exif)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(BytesIO(bad_exif)).getexif().get(282)
        assert len(caught) > 0, "the input is one that Pillow warns about"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            shapes = list(pool.map(lambda data: decode(data).shape, [bad_profile, bad_exif] * 100))
        assert warnings.filters == before
    assert shapes == [(1, 1, 1), (16, 24, 3)] * 100


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_resize_is_within_two_levels_of_pillows(height, width, side_px, seed):
    pixels_BCHW = np.random.default_rng(seed).integers(0, 256, (2, 3, height, width), np.uint8)
    ours = resize(pixels_BCHW, side_px)
    for resized_CHW, pixels_CHW in zip(ours, pixels_BCHW, strict=True):
        theirs = np.asarray(Image.fromarray(pixels_CHW.transpose(1, 2, 0)).resize((side_px, side_px), Image.Resampling.BILINEAR))
        # Both round to whole levels after each of two passes, and halves not alike.
        assert abs(resized_CHW.transpose(1, 2, 0).astype(int) - theirs).max() <= 2


@given(st.integers(1, 300), st.integers(1, 64))
def test_resize_keeps_a_flat_image_flat(size, side_px):
    assert np.unique(resize(np.full((1, 1, size, 3), 255, np.uint8), side_px)).tolist() == [255]


def test_a_batch_is_stacked_with_the_channels_and_size_asked_for():
    grey, colour = encode_png(NOISE[..., :1]), encode_png(NOISE)
    assert np.array_equal(decode_batch([colour, colour]), np.stack([NOISE.transpose(2, 0, 1)] * 2))
    assert np.array_equal(decode_batch(pa.array([grey, colour]), channels=3)[0], np.stack([NOISE[..., 0]] * 3))
    assert np.array_equal(decode_batch([colour], channels=1)[0, 0], np.asarray(Image.fromarray(NOISE).convert("L")))
    assert decode_batch([colour], side_px=8).shape == (1, 3, 8, 8)
    assert decode_batch([], channels=3, side_px=8).shape == (0, 3, 8, 8)


def test_a_batch_names_the_row_that_does_not_fit():
    grey, colour, small = encode_png(NOISE[..., :1]), encode_png(NOISE), encode_png(NOISE[:3])
    with pytest.raises(InputError, match="row 2 has 24x3 pixels, row 0 has 24x16; give side_px"):
        decode_batch([colour, colour, small])
    with pytest.raises(InputError, match="row 1 has 1 channels, row 0 has 3; give channels"):
        decode_batch([colour, grey])
    with pytest.raises(ImageFault, match="row 1: no image"):
        decode_batch(pa.array([colour, None]))
    with pytest.raises(ImageFault, match="row 0: empty file"):
        decode_batch([b""])


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
def test_png_gives_back_what_went_in(height, width, channels, seed):
    pixels_HWC = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    data = encode_png(pixels_HWC)
    assert np.array_equal(decode(data), pixels_HWC)
    assert data == encode_png(pixels_HWC)


@pytest.mark.parametrize("wrong", [np.zeros((2, 2), np.uint8), np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3), np.float32)])
def test_png_refuses_other_arrays(wrong):
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 1 or 3\] expected"):
        encode_png(wrong)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 99), st.data())
def test_the_short_way_to_a_plain_png_gives_what_pillows_reader_gives(height, width, channels, seed, data):
    png = bytearray(encode_png(np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)))
    if data.draw(st.booleans(), "damaged"):
        png[data.draw(st.integers(8, len(png) - 1))] ^= data.draw(st.integers(1, 255))
        png = png[: data.draw(st.integers(9, len(png)))]
    found = []
    for reader in (decode, lambda raw: images._read(raw, images.MAX_PIXELS, "reject")[0]):
        try:
            found.append(reader(bytes(png)).tolist())
        except ImageFault as fault:
            found.append(str(fault))
    assert found[0] == found[1]


def test_pixels_may_be_written_to():
    decode(encode_png(np.zeros((2, 2, 1), np.uint8)))[0] = 1
