"""Every kind of image that becomes pixels, and every kind that becomes a reason."""

from __future__ import annotations

import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from pipeline.decode import Decoded, decode
from pipeline.shards import BadSample
from tests.tars import encode, jpeg, pixels, png

PICTURE = Image.fromarray(pixels(24, 16))
FRAMES = [Image.fromarray(pixels(8, 8, seed)) for seed in range(3)]


def as_pil(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")


def same_size(data: bytes, max_pixels: int = 10**6) -> np.ndarray:
    """Pixels [H, W, 3] of a picture that needs no stretching."""
    return decode(data, (24, 16), max_pixels).pixels.transpose(1, 2, 0)


def reason(data: bytes, max_pixels: int = 10**6) -> tuple[str, str]:
    with pytest.raises(BadSample) as caught:
        decode(data, (8, 8), max_pixels)
    return caught.value.reason, caught.value.detail


def raw_png(h: int, w: int, depth: int, kind: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of samples that PIL cannot write; `kind` is the format's colour type."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    stride = len(rows) // h
    filtered = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(h))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, 0)), *more]
    chunks += [(b"IDAT", zlib.compress(filtered)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in chunks)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_stretched_as_pil_does(format: str) -> None:
    """The reference is PIL's bicubic without crop; another filter moves features visibly."""
    data = encode(PICTURE, format)
    decoded = decode(data, (32, 40), 10**6)
    expected = np.asarray(as_pil(data).resize((40, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert decoded.pixels.dtype == np.uint8 and decoded.pixels.flags.c_contiguous
    np.testing.assert_array_equal(decoded.pixels, expected)
    assert (decoded.height, decoded.width) == (24, 16)


def test_one_pixel() -> None:
    colour = pixels(1, 1).reshape(3, 1, 1)
    np.testing.assert_array_equal(decode(png(1, 1), (8, 8), 1).pixels, np.broadcast_to(colour, (3, 8, 8)))


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_and_palette(mode: str) -> None:
    image = PICTURE.convert(mode)
    np.testing.assert_array_equal(same_size(encode(image, "PNG")), np.asarray(image.convert("RGB")))


def test_cmyk() -> None:
    found = same_size(encode(PICTURE.convert("CMYK"), "JPEG", quality=100)).astype(int)
    assert np.abs(found - np.asarray(PICTURE)).max() < 40 and np.abs(found - np.asarray(PICTURE)).mean() < 5


def test_sixteen_bits() -> None:
    """PIL's convert clips 16-bit grey: all but the darkest 1/256 became white."""
    ramp = np.linspace(0, 65535, 24 * 16).astype(np.uint16).reshape(24, 16)
    expected = np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(same_size(encode(Image.fromarray(ramp), "PNG")), expected)
    colour = np.repeat(ramp[..., None], 3, axis=2).astype(">u2").tobytes()
    np.testing.assert_array_equal(
        same_size(raw_png(24, 16, 16, 2, colour)), expected
    )  # the same as in colour


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_over_white(mode: str) -> None:
    """Dropping alpha shows what was painted under it, often black."""
    image = PICTURE.convert(mode)
    image.putalpha(
        Image.fromarray(np.repeat(np.array([[0, 128, 255, 255]], np.uint8), 24, axis=0).repeat(4, axis=1))
    )
    found = same_size(encode(image, "PNG"))
    opaque = np.asarray(PICTURE.convert(mode).convert("RGB")).astype(int)
    assert (found[:, :4] == 255).all()
    np.testing.assert_allclose(found[:, 4:8], (opaque[:, 4:8] * 128 + 255 * 127) / 255, atol=1)
    np.testing.assert_array_equal(found[:, 8:], opaque[:, 8:])


def two_greys() -> Image.Image:
    return Image.fromarray(np.repeat(np.array([[7] * 8 + [200] * 8], np.uint8), 24, axis=0))


@pytest.mark.parametrize(
    "data",
    [
        encode(two_greys(), "PNG", transparency=7),
        encode(two_greys().convert("RGB"), "PNG", transparency=(7, 7, 7)),
        encode(two_greys().convert("P"), "PNG", transparency=7),
        encode(two_greys().convert("P"), "PNG", transparency=bytes(199) + b"\xff"),
        encode(Image.fromarray(np.asarray(two_greys()).astype(np.uint16) * 256), "PNG", transparency=7 * 256),
    ],
    ids=["grey", "colour", "palette", "palette-alpha", "grey-16"],
)
def test_transparent_colour_is_white(data: bytes) -> None:
    found = same_size(data)
    assert (found[:, :8] == 255).all()
    assert set(np.unique(found[:, 8:])) <= {200}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(PICTURE, format, exif=exif)
    # What the camera saw: the stored rows and columns, moved as the EXIF standard says.
    stored = np.asarray(as_pil(encode(PICTURE, format)))
    turned = stored.transpose(1, 0, 2) if orientation >= 5 else stored
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
    seen = np.flip(turned, flips.get(orientation, ()))
    decoded = decode(data, (seen.shape[0], seen.shape[1]), 10**6)
    np.testing.assert_array_equal(decoded.pixels.transpose(1, 2, 0), seen)
    assert (decoded.height, decoded.width) == seen.shape[:2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_no_rotation() -> None:
    data = encode(PICTURE, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\xff\xff\xff")
    np.testing.assert_array_equal(same_size(data), np.asarray(PICTURE))


def test_first_picture_of_mpo() -> None:
    """Phones put a second picture into ordinary JPEGs; these were refused as animated."""
    data = encode(PICTURE, "MPO", save_all=True, append_images=[FRAMES[0].resize(PICTURE.size)])
    np.testing.assert_array_equal(same_size(data), np.asarray(as_pil(data)))


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_animated(format: str) -> None:
    data = encode(FRAMES[0], format, save_all=True, append_images=FRAMES[1:])
    assert reason(data) == ("animated-image", "has 3 frames; only still images have one set of features")


@pytest.mark.parametrize(
    "data",
    [
        b"this is text",
        b"<html>",
        encode(FRAMES[0], "GIF"),
        encode(FRAMES[0], "TIFF"),
        encode(FRAMES[0], "BMP"),
    ],
)
def test_no_decoder_but_three(data: bytes) -> None:
    """PIL picks among forty decoders by content, whatever the extension says."""
    found, detail = reason(data)
    assert found == "undecodable-image" and "no JPEG, PNG or WebP" in detail


def test_empty() -> None:
    assert reason(b"")[0] == "empty-image"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_truncated(format: str) -> None:
    data = encode(PICTURE, format)
    for cut in range(12, len(data) - 24, 7):
        assert reason(data[:cut])[0] == "truncated-image"


def test_damaged() -> None:
    data = bytearray(png(24, 16))
    data[len(data) // 2] ^= 0xFF
    assert reason(bytes(data))[0] == "undecodable-image"


def test_truncation_is_never_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another library that sets PIL's switch would have turned truncated images into grey areas."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES is set"):
        decode(jpeg(8, 8), (8, 8), 100)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_bomb_is_not_decoded(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("was decoded"))
    found, detail = reason(encode(PICTURE, format), max_pixels=24 * 16 - 1)
    assert (found, detail) == ("decompression-bomb", "declares 16 x 24 pixels; input.max_pixels allows 383")


def test_pils_own_limit_neither_warns_nor_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL warns above its process-wide limit and raises above twice of it, whatever `max_pixels` says."""
    grey = Image.new("L", (16, 24))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format in ("JPEG", "PNG"):
            assert same_size(encode(grey, format)).max() == 0
        # WebP's decoder applies the limit itself, which nothing but a global can lift.
        assert reason(encode(grey, "WEBP"))[0] == "decompression-bomb"
    assert Image.MAX_IMAGE_PIXELS == 100


def test_threads_give_the_same() -> None:
    images = [jpeg(20 + i, 30, i) for i in range(40)]
    alone = [decode(data, (16, 16), 10**6).pixels for data in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decode(data, (16, 16), 10**6).pixels, images))
    np.testing.assert_array_equal(alone, together)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_nothing_but_bad_sample_comes_out_of_damaged_bytes(draw: Any) -> None:
    """PIL raises SyntaxError, struct.error and others for hostile bytes."""
    data = bytearray(encode(PICTURE, draw.draw(st.sampled_from(["JPEG", "PNG", "WEBP"]))))
    for _ in range(draw.draw(st.integers(1, 5))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        assert isinstance(decode(bytes(data), (8, 8), 10**6), Decoded)
    except BadSample as bad:
        assert bad.detail
