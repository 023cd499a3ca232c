"""A head that `gatehouse train-head` has made, ready to predict: what it is, its weights, how its features are made.

The backbone is not loaded before `extractor` is called, so what is wrong with a head is known before that takes time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from safetensors import SafetensorError
from safetensors.torch import load

from pipeline.extractor import FeatureExtractor, restricted
from pipeline.heads.choice import Choice
from pipeline.heads.folder import HeadFolder, split_name
from pipeline.heads.tasks import make
from pipeline.heads.tasks.base import Head
from pipeline.reader import FeatureStore
from schemas import __version__
from schemas.head import WEIGHTS, HeadManifest, HeadSpec
from schemas.spec import ExtractSpec


@dataclass(frozen=True)
class Trained:
    """A trained head."""

    url: str
    manifest: HeadManifest
    spec: HeadSpec
    network: Head
    """On its device, in evaluation mode."""
    device: str

    @property
    def taps(self) -> list[str]:
        """What it reads, as `group/tap`."""
        return list(self.manifest.shapes)


def load_head(url: str, split: int = 0, device: str = "cpu") -> Trained:
    """Read a head's description and the weights of one of its splits.

    Args:
        url: of the head.
        split: whose weights.
        device: cpu or cuda.

    Raises:
        ValueError: no head there, no such split, weights that are missing, damaged or of another head.
    """
    folder = HeadFolder(url)
    manifest = folder.manifest()
    assert manifest is not None
    spec = HeadSpec.model_validate(manifest.spec)
    choice = Choice(
        tuple(manifest.groups), tuple(manifest.taps), tuple(spec.features.attention), manifest.shapes
    )
    network = make(spec, choice, manifest.classes).network()
    _load(network, folder, manifest, split)
    return Trained(folder.url, manifest, spec, network.eval().to(device), device)


def extraction(trained: Trained, store: str | None = None) -> ExtractSpec:
    """How the features that a head reads are computed: the spec of its store, with the groups that it reads.

    Args:
        trained: the head.
        store: where the store is now, or a folder with its `manifest.json`; default: where it was.

    Raises:
        ValueError: the store is not there, or another one is.
    """
    found = _store(trained, store)
    return ExtractSpec.model_validate(restricted(found, trained.taps).spec)


def extractor(
    trained: Trained,
    store: str | None = None,
    *,
    moved: Mapping[str, str] | None = None,
    allow_calls: bool = False,
) -> FeatureExtractor:
    """Load the backbone, and what else the groups that a head reads take, onto the head's device.

    Args:
        trained: the head.
        store: as of `extraction`.
        moved, allow_calls: as of `FeatureExtractor.from_store`.

    Raises:
        ValueError: the store is not there, or another one is; weights that are not found, or are others than its own.
    """
    return FeatureExtractor.from_store(
        _store(trained, store).url,
        taps=trained.taps,
        moved=moved,
        device=trained.device,
        allow_calls=allow_calls,
    )


def _load(network: Head, folder: HeadFolder, manifest: HeadManifest, split: int) -> None:
    name = f"{split_name(split)}/{WEIGHTS}"
    if not 0 <= split < manifest.splits:
        raise ValueError(
            f"head {folder.url} has no split {split}; it has {manifest.splits}, counted from 0: give one of them"
        )
    if (data := folder.read(name)) is None:
        raise ValueError(
            f"head {folder.url}: there is no {name}, so this split is not trained yet; run `gatehouse train-head` to"
            " its end, or give another split"
        )
    try:
        found, weights = _fingerprint(data), load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"head {folder.url}: {name} is damaged ({error}); copy it again from where it was"
        ) from error
    if found != manifest.fingerprint:
        raise ValueError(
            f"head {folder.url}: {name} belongs to the head {found[:12]}, and head.json describes"
            f" {manifest.fingerprint[:12]}; put the files of one head together again"
        )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"head {folder.url} was made by gatehouse {manifest.gatehouse}, and its weights do not fit the network of"
            f" this release, {__version__} ({error}); use the release that made it"
        ) from error


def _fingerprint(data: bytes) -> str:
    """Of the head that a file of weights belongs to, from the file's header: its length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    found: str = json.loads(data[8 : 8 + length])["__metadata__"]["gatehouse"]
    return found


def _store(trained: Trained, url: str | None) -> FeatureStore:
    try:
        store = FeatureStore(url or trained.spec.store)
    except ValueError as error:
        if url is not None:
            raise
        raise ValueError(
            f"head {trained.url}: the store that it was trained on cannot be read: {error}. Say where it is now"
            " (--store); a folder with its manifest.json is enough"
        ) from error
    wanted, found = trained.manifest.identity["store"], store.manifest.fingerprint
    if found != wanted:
        raise ValueError(
            f"head {trained.url} was trained on features with fingerprint {wanted[:12]}, and the store {store.url}"
            f" holds {found[:12]}: {_difference(trained, store)}. Give the store that it was trained on (--store)"
        )
    return store


def _difference(trained: Trained, store: FeatureStore) -> str:
    """What is known to differ between the features of a head and those of a store."""
    for name, shape in trained.manifest.shapes.items():
        if name not in store.taps:
            return f"there is no {name!r}"
        stored = store.taps[name].shape
        if stored[0] != shape[0] or (shape[1:] != [1, 1] and stored != shape):
            return f"{name!r} is {stored} there, and {shape} to the head"
    return "weights, prompts, techniques or other settings differ"
