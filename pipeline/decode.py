"""Encoded image -> pixels: uint8 [3, H, W], RGB, brought to one size with PIL's bicubic filter (`pipeline.geometry`).

What is well defined is converted: CMYK, palette and grey to RGB, 16 bits a channel to the upper 8 (PIL's own
conversion of 16-bit grey clips instead), transparency laid over white, EXIF rotation applied. Of a JPEG that
holds several pictures (MPO, as phones write them) the first is taken. A colour declared transparent is
not honoured in 16-bit RGB. The rest has a reason:

    empty-image           no bytes
    undecodable-image     no JPEG, PNG or WebP, whatever its name says, or a damaged one
    truncated-image       the file ends too early
    animated-image        more than one frame
    decompression-bomb    declares more than `max_pixels`; known from the header, before anything is decoded

A control image that lies beside a picture goes the same way and ends up pixel by pixel under it, whatever its own
resolution; it has one reason more:

    field-aspect          other proportions than the picture's, so it shows another frame, or lies on its side

Thread-safe: nothing global is changed, and no decoder but these three can be reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.bad import BadSample
from pipeline.geometry import Box, Fit, Placement, Size, placement, same_frame

GREY = 127
"""Of padding around pictures: what the network takes pixels as, `x / 127.5 - 1`, is -0.004 there."""
BLACK = 0
"""Of padding around control images: nothing to follow, to most ControlNets."""

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass
class Decoded:
    """An image as the network takes it."""

    pixels: np.ndarray
    """uint8 [3, H, W], RGB."""
    height: int
    """Of the original in pixels, after EXIF rotation."""
    width: int
    box: Box
    """Where the picture lies in [H, W]: top, left, height, width."""


def decode(data: bytes, size: Size, max_pixels: int, fit: Fit = "stretch") -> Decoded:
    """Decode and bring to `size` = (H, W); raises as `picture`."""
    return fitted(picture(data, max_pixels), size, fit)


def decode_beside(
    data: bytes, original: Size, size: Size, max_pixels: int, fit: Fit = "stretch"
) -> np.ndarray:
    """A control image uint8 [3, H, W] for a picture that was `original` = (height, width) pixels large.

    Raises:
        BadSample: as `picture`, and field-aspect.
    """
    return fitted_beside(picture(data, max_pixels), original, size, fit)


def picture(data: bytes, max_pixels: int) -> Image.Image:
    """Decode to an upright RGB picture of its own size.

    Raises:
        BadSample: with one of the reasons above.
        RuntimeError: PIL was told, somewhere in this process, to pass over truncation.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so truncated images would come out half grey;"
            " unset it"
        )
    if not data:
        raise BadSample("empty-image", "the image has no bytes")
    try:
        return _to_rgb(_upright(_load(data, max_pixels)))
    except (BadSample, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # PIL's own limit, which WebP's decoder enforces
        raise BadSample("decompression-bomb", str(error)) from error
    except Exception as error:  # hostile bytes make PIL raise almost anything
        reason = "truncated-image" if _is_cut(data, error) else "undecodable-image"
        raise BadSample(reason, f"{len(data)} bytes: {error or type(error).__name__}") from error


def fitted(rgb: Image.Image, size: Size, fit: Fit = "stretch") -> Decoded:
    """An RGB picture, brought to `size` = (H, W)."""
    place = placement((rgb.height, rgb.width), size, fit)
    return Decoded(_drawn(rgb, place, size, GREY), rgb.height, rgb.width, place.box)


def fitted_beside(rgb: Image.Image, original: Size, size: Size, fit: Fit = "stretch") -> np.ndarray:
    """An RGB control image for a picture that was `original` = (height, width) pixels large: uint8 [3, H, W].

    It is taken to show the picture's frame, so that the same part of it is kept and comes to lie in the same box.

    Raises:
        BadSample: field-aspect.
    """
    if not same_frame((rgb.height, rgb.width), original):
        raise BadSample(
            "field-aspect",
            f"has {rgb.height} x {rgb.width} pixels (height x width), its picture {original[0]} x {original[1]}; a"
            " control image must have its picture's proportions",
        )
    place = placement(original, size, fit)
    vertical, horizontal = rgb.height / original[0], rgb.width / original[1]
    top, left, bottom, right = place.kept
    kept = (
        top * vertical,
        left * horizontal,
        min(bottom * vertical, rgb.height),
        min(right * horizontal, rgb.width),
    )
    return _drawn(rgb, Placement(kept, place.box), size, BLACK)


def _drawn(rgb: Image.Image, place: Placement, size: Size, padding: int) -> np.ndarray:
    """What is kept of a picture, at its place in an image uint8 [3, H, W]."""
    top, left, height, width = place.box
    first_row, first_column, last_row, last_column = place.kept
    kept = (first_column, first_row, last_column, last_row)  # PIL's order
    part = rgb.resize((width, height), Image.Resampling.BICUBIC, box=kept)
    image = np.full((3, *size), padding, np.uint8)
    image[:, top : top + height, left : left + width] = np.asarray(part).transpose(2, 0, 1)
    return image


def _load(data: bytes, max_pixels: int) -> Image.Image:
    """The decoded image, in the file's own mode."""
    image = _open(data)
    if image.width * image.height > max_pixels:
        raise BadSample(
            "decompression-bomb",
            f"declares {image.width} x {image.height} pixels; input.max_pixels allows {max_pixels}",
        )
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise BadSample("animated-image", f"has {frames} frames; only still images have one set of features")
    image.load()
    return image


def _open(data: bytes) -> ImageFile.ImageFile:
    """Header only. `Image.open` would do the same, but warns and raises by a process-wide limit of pixels."""
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile(BytesIO(data))
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile(BytesIO(data))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile(BytesIO(data))
    raise BadSample("undecodable-image", f"starts with {data[:16]!r}, which is no JPEG, PNG or WebP")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # damaged metadata do not make the picture worse; viewers show it as it is
        orientation = None
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.uint16)
        if (transparent := image.info.get("transparency")) is not None:
            grey[grey == transparent] = 0xFFFF
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _is_cut(data: bytes, error: Exception) -> bool:
    """Whether a file that failed to decode lacks its end."""
    if "truncated" in str(error).lower():
        return True
    tail = data[-1024:]
    if data.startswith(b"RIFF"):
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return (b"IEND" if data.startswith(b"\x89PNG") else b"\xff\xd9") not in tail
