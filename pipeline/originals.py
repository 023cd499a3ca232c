"""The pictures behind stored rows, as the network saw them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bad import BadSample
from pipeline.decode import decode
from pipeline.listing import list_shards
from pipeline.members import MemberIndex
from pipeline.reader import FeatureStore
from schemas.spec import ExtractSpec


class Originals:
    """Reads the picture of an index record.

    Args:
        store: whose rows.
        root: URL under which the shards lie by their ids; default: where extraction found them.

    Raises:
        ValueError, OSError: the shards are not where they were.
    """

    def __init__(self, store: FeatureStore, root: str | None = None) -> None:
        self._spec = ExtractSpec.model_validate(store.manifest.spec)
        if root is None:
            shard = list_shards(self._spec.input)[0]
            root = shard.url.removesuffix(shard.id)  # an id is the path below the root
        wanted = self._spec.input
        self._members = MemberIndex(root, wanted.image_fields, max_member_bytes=wanted.max_member_bytes)

    def read(self, line: Mapping[str, Any]) -> NDArray[np.uint8]:
        """RGB [H, W, 3] of `image_size`.

        Raises:
            BadSample: the image is not the one that the features were made from.
            FileNotFoundError, KeyError, OSError: it is not there.
        """
        found = self._members.read(line["shard"], line["key"])
        names = [field.lower() for field in self._spec.input.image_fields]
        data = next((found[name] for name in names if name in found), b"")
        if hashlib.sha256(data).hexdigest() != line["sha256"]:
            raise BadSample("changed", "the image is not the one that the features were made from")
        size = (self._spec.image_size[0], self._spec.image_size[1])
        return np.moveaxis(decode(data, size, self._spec.input.max_pixels, self._spec.fit).pixels, 0, -1)
