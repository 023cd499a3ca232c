"""The same features without Ray and without a store: for a picture at hand, or a head that predicts on new ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline import device as devices
from pipeline import families, sources, techniques
from pipeline.batch import Batch
from pipeline.decode import Decoded, fitted, fitted_beside, picture
from pipeline.features import Features, make_engine
from pipeline.identity import check_selection, check_weights
from pipeline.layouts import layouts
from pipeline.reader import FeatureStore
from schemas.receipts import ArrayLayout, Manifest
from schemas.spec import ExtractSpec

_SOURCES = ("source", "config", "image_encoder")
ImageLike = bytes | Image.Image | NDArray[np.uint8]


class FeatureExtractor:
    """Computes the feature groups of a spec for images in memory.

    Given a stored sample's bytes with its shard id and key, it returns the stored row within the bound that the
    documentation states, since kernels may depend on a sample's slot, which is another one here; the very same bytes
    for the embedded backbone on a CPU with one thread (`cluster.cpus_per_actor`) and the same libraries.

    Args:
        spec: of an extract job; its input, store and cluster play no role, but for `cluster.device` and threads.
    """

    def __init__(self, spec: ExtractSpec) -> None:
        folder = sources.locate(spec.backbone)
        check_selection(spec, folder)
        for group in spec.groups:
            techniques.check(group.techniques, families.family(folder), folder)
        self._set_up(spec, layouts(spec, folder))

    @classmethod
    def from_store(
        cls,
        url: str,
        *,
        taps: Sequence[str] | None = None,
        moved: Mapping[str, str] | None = None,
        device: str | None = None,
        allow_calls: bool = False,
    ) -> FeatureExtractor:
        """An extractor of what a store holds.

        Args:
            url: of the store, or of a folder with its `manifest.json` alone.
            taps: names as in `FeatureStore.taps`; default all. Groups without any of them are not computed, and nothing
                that only they need is loaded.
            moved: where weights are now, by where the store's spec says they were: the backbone's source or config,
                a ControlNet, a LoRA, an image encoder.
            device: cpu, cuda or auto; default the store's spec's.
            allow_calls: import and run functions that the store names for control images (`call:MODULE:FUNCTION`).

        Raises:
            IdentityError: weights found are not those that made the store.
            KeyError: a tap that is not stored.
            ValueError: weights that are not found, or a function that is not allowed.
        """
        store = FeatureStore(url)
        manifest = store.manifest if taps is None else restricted(store, taps)
        document = _moved(manifest.spec, moved or {})
        if device is not None:
            document["cluster"] = document["cluster"] | {"device": device}
        spec = ExtractSpec.model_validate(document)
        calls = [image for image in _control_images(spec) if image.startswith("call:")]
        if calls and not allow_calls:
            raise ValueError(
                f"store {url} names the function {calls[0]!r} to be imported and run; pass allow_calls=True"
                " (--allow-calls) if you trust the store"
            )
        check_weights(spec, manifest)
        extractor = cls.__new__(cls)
        extractor._set_up(spec, manifest.arrays, taps)
        return extractor

    def __call__(
        self,
        images: Sequence[ImageLike],
        *,
        ids: Sequence[tuple[str, str]] | None = None,
        captions: Sequence[str] | None = None,
        json: Mapping[str, Sequence[str]] | None = None,
        fields: Mapping[str, Sequence[ImageLike]] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Features of some images.

        Args:
            images: encoded bytes, PIL images in RGB or grey, or RGB arrays uint8 [H, W, 3]; fitted to the spec's
                size. Only for bytes is every kind of picture converted as in a job.
            ids: (shard id, key) of each, which noise depends on; default: from the image's content.
            captions: of each, for prompts with `{caption}`.
            json: by field, the text of each, for prompts with `{json:FIELD}`.
            fields: by tar extension, the control image of each, for ControlNets that take one.

        Returns:
            {"group/tap": [len(images), C, h, w]} in the stored dtype.

        Raises:
            BadSample: an image that cannot be decoded, or a control image of other proportions than its image.
            ValueError: an image that is none of these, something that a group needs and that is missing, another
                number of anything than of images, or values that do not fit the stored dtype.
        """
        outputs = {
            f"{array.group}/{array.tap}": np.empty((len(images), *array.shape), array.dtype)
            for array in self._arrays
        }
        for part, features in self._computed(images, ids, captions, json, fields):
            for array in self._arrays:
                values = features.maps[array.group, array.tap]
                outputs[f"{array.group}/{array.tap}"][part] = values[: part.stop - part.start]
        return outputs

    def pooled(
        self,
        images: Sequence[ImageLike],
        *,
        ids: Sequence[tuple[str, str]] | None = None,
        captions: Sequence[str] | None = None,
        json: Mapping[str, Sequence[str]] | None = None,
        fields: Mapping[str, Sequence[ImageLike]] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Pooled vectors of some images, as `FeatureStore.pooled` has them; arguments and errors as when called.

        Returns:
            {"group/tap": [len(images), C]}, float32.
        """
        outputs = {
            f"{array.group}/{array.tap}": np.empty((len(images), array.shape[0]), np.float32)
            for array in self._arrays
        }
        for part, features in self._computed(images, ids, captions, json, fields):
            for array in self._arrays:
                vectors = features.pooled[array.group, array.tap]
                outputs[f"{array.group}/{array.tap}"][part] = vectors[: part.stop - part.start]
        return outputs

    def _computed(
        self,
        images: Sequence[ImageLike],
        ids: Sequence[tuple[str, str]] | None,
        captions: Sequence[str] | None,
        json: Mapping[str, Sequence[str]] | None,
        fields: Mapping[str, Sequence[ImageLike]] | None,
    ) -> Iterator[tuple[slice, Features]]:
        """Batch by batch: which images, and what became of them in the first slots."""
        texts: dict[str, list[str | None]] = {
            f"json:{name}": list(values) for name, values in (json or {}).items()
        }
        if captions is not None:
            texts["caption"] = list(captions)
        self._check_given(len(images), ids, texts, fields or {})
        whole = self._batch(images, ids, texts, fields or {})
        size = self.spec.backbone.batch_size
        for place in range(0, len(images), size):
            part = slice(place, min(place + size, len(images)))
            features = self._engine.run(whole.pick(range(part.start, part.stop)).padded(size))
            self._check(features, place, part.stop - part.start)
            yield part, features

    def _set_up(
        self, spec: ExtractSpec, arrays: Sequence[ArrayLayout], taps: Sequence[str] | None = None
    ) -> None:
        self.spec = spec
        self._arrays = [one for one in arrays if taps is None or f"{one.group}/{one.tap}" in taps]
        # Scores take passes of their own, and are no features.
        unscored = spec.model_copy(update={"output": spec.output.model_copy(update={"scores": None})})
        self._engine = make_engine(unscored, arrays, devices.choose(spec.cluster.device))

    def _picture(self, image: ImageLike) -> Image.Image:
        """Upright, in RGB, of its own size."""
        if isinstance(image, bytes):
            return picture(image, self.spec.input.max_pixels)
        if isinstance(image, Image.Image):
            if image.mode not in ("RGB", "L"):
                raise ValueError(
                    f"a PIL image of mode {image.mode}; give the file's bytes, or convert it to RGB"
                )
            return ImageOps.exif_transpose(image).convert("RGB")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an array {image.dtype} {list(image.shape)}; images are uint8 [H, W, 3]")
        return Image.fromarray(image)

    def _batch(
        self,
        images: Sequence[ImageLike],
        ids: Sequence[tuple[str, str]] | None,
        texts: dict[str, list[str | None]],
        fields: Mapping[str, Sequence[ImageLike]],
    ) -> Batch:
        """All images as one batch."""
        size, fit = (self.spec.image_size[0], self.spec.image_size[1]), self.spec.fit
        decoded = [fitted(self._picture(image), size, fit) for image in images]
        names = [("", hashlib.sha256(one.pixels.tobytes()).hexdigest()) for one in decoded]

        def stacked(pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
            return np.array(pixels, np.uint8).reshape(-1, 3, *size)

        def beside(image: ImageLike, of: Decoded) -> NDArray[np.uint8]:
            return fitted_beside(self._picture(image), (of.height, of.width), size, fit)

        nothing: list[str | None] = [None] * len(images)
        return Batch(
            ids=list(names if ids is None else ids),
            pixels=stacked([one.pixels for one in decoded]),
            boxes=np.array([one.box for one in decoded], np.int32).reshape(-1, 4),
            texts=texts,
            fields={name: stacked([*map(beside, values, decoded)]) for name, values in fields.items()},
            field_reasons={name: nothing for name in fields},
        )

    def _check_given(
        self, count: int, ids: Sequence[Any] | None, texts: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> None:
        for group in self.spec.groups:
            for name in group.placeholders:
                if name not in texts:
                    raise ValueError(
                        f"the prompt of group {group.name!r} has {{{name}}}; give `{_argument(name)}`, a text for each"
                        " image"
                    )
        for name in self.spec.control_fields:
            if name not in fields:
                raise ValueError(
                    f"a ControlNet takes {name!r}; give `fields[{name!r}]`, an image for each image"
                )
        given = {_argument(name): values for name, values in texts.items()}
        given |= {f"fields[{name!r}]": values for name, values in fields.items()}
        for name, values in (given if ids is None else given | {"ids": ids}).items():
            if len(values) != count:
                raise ValueError(f"{count} images, but {len(values)} {name}; give one for each image")

    @staticmethod
    def _check(features: Features, first: int, count: int) -> None:
        for group, reasons in features.reasons.items():
            for place, reason in enumerate(reasons[:count], first):
                if reason is not None:
                    raise ValueError(f"image {place}: group {group!r} failed: {reason}")


def restricted(store: FeatureStore, taps: Sequence[str]) -> Manifest:
    """A store's manifest as if it held these taps (`group/tap`) only, and the groups that they are of.

    A store of tiled pictures keeps an array of each resolution, since places of tiles follow from all of them.

    Raises:
        KeyError: a tap that is not stored.
    """
    manifest = store.manifest
    arrays = [store.layout(name) for name in dict.fromkeys(taps)]
    if manifest.spec.get("tiles") is not None:
        asked = {array.group for array in arrays}
        for array in sorted(manifest.arrays, key=lambda one: one.group not in asked):
            if array.shape[1:] not in [one.shape[1:] for one in arrays]:
                arrays.append(array)
    wanted = {array.group for array in arrays}
    groups = ExtractSpec.model_validate(manifest.spec).expanded_groups
    kept = [group.model_dump(mode="json") for group in groups if group.name in wanted]
    identified = [group for group in manifest.identity["groups"] if group["name"] in wanted]
    return manifest.model_copy(
        update={
            "arrays": arrays,
            "spec": manifest.spec | {"groups": kept},
            "identity": manifest.identity | {"groups": identified},
        }
    )


def _moved(document: Any, moved: Mapping[str, str]) -> Any:
    """A spec's document with every source replaced that has moved."""
    if isinstance(document, dict):
        return {
            key: moved.get(value, value)
            if key in _SOURCES and isinstance(value, str)
            else _moved(value, moved)
            for key, value in document.items()
        }
    return [_moved(value, moved) for value in document] if isinstance(document, list) else document


def _control_images(spec: ExtractSpec) -> list[str]:
    return [one.image for group in spec.groups for one in group.techniques if one.type == "controlnet"]


def _argument(placeholder: str) -> str:
    """What a caller fills a prompt's placeholder with."""
    return "captions" if placeholder == "caption" else f"json[{placeholder.removeprefix('json:')!r}]"
