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

from pipeline.bad import BadSample
from pipeline.decode import BLACK, GREY, Decoded, decode, decode_beside, fitted
from pipeline.geometry import Fit, Size
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
    assert (decoded.height, decoded.width, decoded.box) == (24, 16, (0, 0, 32, 40))


def resized(image: Image.Image, size: Size, box: tuple[float, float, float, float]) -> np.ndarray:
    """PIL's own result for a part (left, top, right, bottom) of a picture, [3, H, W]."""
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box)).transpose(2, 0, 1)


def test_a_crop_is_the_middle_at_one_scale() -> None:
    """24 x 16 to 32 x 32: 16 rows of the 24 are kept, 4 are lost above and 4 below."""
    decoded = decode(png(24, 16), (32, 32), 10**6, "crop")
    np.testing.assert_array_equal(decoded.pixels, resized(PICTURE, (32, 32), (0, 4, 16, 20)))
    assert (decoded.height, decoded.width, decoded.box) == (24, 16, (0, 0, 32, 32))


def test_padding_is_grey_around_the_whole_picture() -> None:
    decoded = decode(png(24, 16), (48, 48), 10**6, "pad")
    assert decoded.box == (0, 8, 48, 32)
    np.testing.assert_array_equal(decoded.pixels[:, :, 8:40], resized(PICTURE, (48, 32), (0, 0, 16, 24)))
    assert (decoded.pixels[:, :, :8] == GREY).all() and (decoded.pixels[:, :, 40:] == GREY).all()
    assert abs(GREY / 127.5 - 1) < 0.005, "which is about 0 to the network"


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_a_picture_of_the_images_size_is_left_as_it_is(fit: Fit) -> None:
    np.testing.assert_array_equal(
        fitted(PICTURE, (24, 16), fit).pixels, np.asarray(PICTURE).transpose(2, 0, 1)
    )


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("picture", [(24, 16), (50, 75), (64, 64)])
@pytest.mark.parametrize("factor", [1, 3])
def test_a_control_image_comes_to_lie_under_its_picture(picture: Size, factor: int, fit: Fit) -> None:
    """A ramp from corner to corner, at another resolution: what the picture shows at a place, the control shows too."""
    height, width = picture

    def ramp(scale: int) -> bytes:
        down, across = ((np.arange(scale * side) + 0.5) / (scale * side) for side in (height, width))
        colours = np.stack(np.broadcast_arrays(250 * down[:, None], 250 * across[None], 125.0), axis=2)
        return encode(Image.fromarray(colours.round().astype(np.uint8)), "PNG")

    decoded = decode(ramp(1), (64, 48), 10**6, fit)
    control = decode_beside(ramp(factor), picture, (64, 48), 10**6, fit)
    assert control.dtype == np.uint8 and control.shape == (3, 64, 48)
    top, left, tall, wide = decoded.box
    inside = np.s_[:, top : top + tall, left : left + wide]
    difference = np.abs(control[inside].astype(int) - decoded.pixels[inside])
    assert difference.mean() < 1 and difference.max() <= 125 / min(picture) + 2, "half a pixel, at the edges"
    assert factor > 1 or not difference.any()
    outside = np.ones((64, 48), bool)
    outside[inside[1:]] = False
    assert (control[:, outside] == BLACK).all() and (decoded.pixels[:, outside] == GREY).all()


def test_a_depth_map_of_16_bits_beside_a_picture() -> None:
    depth = np.linspace(0, 65535, 24 * 16).astype(np.uint16).reshape(24, 16)
    control = decode_beside(encode(Image.fromarray(depth), "PNG"), (48, 32), (24, 16), 10**6)
    np.testing.assert_array_equal(control, np.broadcast_to(depth >> 8, (3, 24, 16)))


def test_a_control_image_of_another_frame() -> None:
    """Upright beside a picture that lies on its side: it would be stretched over it without a word."""
    with pytest.raises(BadSample) as caught:
        decode_beside(png(24, 16), (16, 24), (8, 8), 10**6)
    assert caught.value.reason == "field-aspect"
    assert "has 24 x 16 pixels (height x width), its picture 16 x 24; a control" in caught.value.detail


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
