"""What a command line may choose."""

from __future__ import annotations

import pytest

from pipeline.reproduce.options import checked


def test_defaults_are_the_papers() -> None:
    options = checked(name="horse21", image_size=None)
    chosen = (options.backbone, options.controlnet, options.image_size, options.gate, options.quick)
    assert (options.dtype, *chosen) == ("float16", None, None, None, False, False)


@pytest.mark.parametrize(("given", "sides"), [("64", [64, 64]), ("64x128", [64, 128])])
def test_image_sizes(given: str, sides: list[int]) -> None:
    assert checked(name="cityscapes", image_size=given).image_size == sides


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "horse"}, "^experiment: found 'horse': .*'horse21'"),
        ({"dtype": "bfloat16"}, "^--dtype: found 'bfloat16': .*'float16' or 'float32'"),
        ({"image_size": "63"}, "^--image-size: found .63, 63.: .*multiples of 8"),
        ({"image_size": "0"}, "^--image-size: .*multiples of 8"),
        ({"image_size": "big"}, "^--image-size is 'big'; give N or HxW"),
        ({"store": "s3://key:secret@bucket/x"}, "^--store: .*holds credentials"),
        ({"revision": "1" * 40}, "revision is given without backbone"),
        ({"controlnet_revision": "1" * 40}, "controlnet_revision is given without controlnet"),
    ],
)
def test_what_is_wrong_is_told(given: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        checked(**{"name": "horse21", "image_size": None, **given})


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)experiment: .*\n--dtype: "):
        checked(name="cow21", dtype="int8", image_size=None)
