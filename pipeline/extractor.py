"""The same features without Ray and without a store: for a picture at hand, or a head that predicts on new ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline import checkpoint
from pipeline import device as devices
from pipeline.backbone import resolve_timestep
from pipeline.decode import decode, stretch
from pipeline.features import Batch, Features, make_engine
from pipeline.identity import check_backbone
from pipeline.plan import layouts
from pipeline.store import read_manifest
from schemas.receipts import ArrayLayout
from schemas.spec import ExtractSpec

ImageLike = bytes | Image.Image | NDArray[np.uint8]


class FeatureExtractor:
    """Computes the feature groups of a spec for images in memory.

    Given a stored sample's bytes with its shard id and key, it returns the stored row: the same bytes on a CPU with
    one thread (`cluster.cpus_per_actor`) and the same libraries, else within the bound that the documentation
    states, because kernels that share a batch among threads depend on a sample's slot, which is another one here.

    Args:
        spec: of an extract job; its input, store and cluster play no role, but for `cluster.device` and threads.
    """

    def __init__(self, spec: ExtractSpec) -> None:
        folder = checkpoint.locate(spec.backbone)
        self._set_up(
            spec,
            layouts(spec, folder),
            {group.name: resolve_timestep(folder, group.t, group.timestep) for group in spec.groups},
        )

    @classmethod
    def from_store(
        cls, url: str, *, source: str | None = None, device: str | None = None
    ) -> FeatureExtractor:
        """An extractor of what a store holds.

        Args:
            url: of the store.
            source: where the backbone is now, if not where the store's spec says.
            device: cpu, cuda or auto; default the store's spec's.

        Raises:
            IdentityError: the backbone found is not the one that made the store.
        """
        manifest = read_manifest(url)
        spec = ExtractSpec.model_validate(manifest.spec)
        if source is not None:
            spec = spec.model_copy(update={"backbone": spec.backbone.model_copy(update={"source": source})})
        if device is not None:
            spec = spec.model_copy(update={"cluster": spec.cluster.model_copy(update={"device": device})})
        check_backbone(spec, manifest)
        extractor = cls.__new__(cls)
        extractor._set_up(spec, manifest.arrays, manifest.timesteps)
        return extractor

    def __call__(
        self,
        images: Sequence[ImageLike],
        *,
        ids: Sequence[tuple[str, str]] | None = None,
        captions: Sequence[str] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Features of some images.

        Args:
            images: encoded bytes, PIL images in RGB or grey, or RGB arrays uint8 [H, W, 3]; stretched to the spec's
                size. Only for bytes is every kind of picture converted as in a job.
            ids: (shard id, key) of each, which noise depends on; default: from the image's content.
            captions: of each, for prompts with `{caption}`.

        Returns:
            {"group/tap": [len(images), C, h, w]} in the stored dtype.

        Raises:
            BadSample: an image that cannot be decoded.
            ValueError: an image that is none of these, captions that are needed and missing, another number of ids
                or captions than images, or values that do not fit the stored dtype.
        """
        for name, given in (("ids", ids), ("captions", captions)):
            if given is not None and len(given) != len(images):
                raise ValueError(f"{len(images)} images, but {len(given)} {name}; give one for each image")
        pixels = [self._pixels(image) for image in images]
        names = (
            [("", hashlib.sha256(one.tobytes()).hexdigest()) for one in pixels] if ids is None else list(ids)
        )
        texts: list[str | None] = [None] * len(pixels) if captions is None else list(captions)
        outputs = {
            f"{array.group}/{array.tap}": np.empty((len(pixels), *array.shape), array.dtype)
            for array in self._arrays
        }
        for place in range(0, len(pixels), self._batch_size):
            part = slice(place, place + self._batch_size)
            features = self._run(pixels[part], names[part], texts[part])
            self._check(features, place, len(pixels[part]))
            for (group, tap), values in features.maps.items():
                outputs[f"{group}/{tap}"][part] = values[: len(pixels[part])]
        return outputs

    def _set_up(self, spec: ExtractSpec, arrays: Sequence[ArrayLayout], timesteps: dict[str, int]) -> None:
        self.spec = spec
        self._arrays = list(arrays)
        self._batch_size = spec.backbone.batch_size
        self._engine = make_engine(spec, arrays, timesteps, devices.choose(spec.cluster.device))

    def _pixels(self, image: ImageLike) -> NDArray[np.uint8]:
        size = (self.spec.image_size[0], self.spec.image_size[1])
        if isinstance(image, bytes):
            return decode(image, size, self.spec.input.max_pixels).pixels
        if isinstance(image, Image.Image):
            if image.mode not in ("RGB", "L"):
                raise ValueError(
                    f"a PIL image of mode {image.mode}; give the file's bytes, or convert it to RGB"
                )
            return stretch(ImageOps.exif_transpose(image).convert("RGB"), size)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an array {image.dtype} {list(image.shape)}; images are uint8 [H, W, 3]")
        return stretch(Image.fromarray(image), size)

    def _run(
        self,
        pixels: Sequence[NDArray[np.uint8]],
        ids: Sequence[tuple[str, str]],
        captions: Sequence[str | None],
    ) -> Features:
        count, size = len(pixels), self._batch_size
        padded = np.zeros((size, 3, *self.spec.image_size), np.uint8)
        padded[:count] = np.stack(pixels)
        padding: list[None] = [None] * (size - count)
        batch = Batch(
            ids=[*ids, *padding],
            pixels=padded,
            captions=[*captions, *padding],
            caption_reasons=[None] * size,
        )
        return self._engine.run(batch)

    @staticmethod
    def _check(features: Features, first: int, count: int) -> None:
        for group, reasons in features.reasons.items():
            for place, reason in enumerate(reasons[:count], first):
                if reason == "no-caption":
                    raise ValueError(
                        f"image {place}: the prompt of group {group!r} needs a caption; give `captions`"
                    )
                if reason is not None:
                    raise ValueError(f"image {place}: group {group!r} failed: {reason}")
