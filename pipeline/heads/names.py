"""Names of a head's classes: the spec's own, or those that lie beside the shards."""

from __future__ import annotations

from collections import Counter

from pydantic import ValidationError

from pipeline import embedded, storage
from schemas.dataset import DATASET, Dataset
from schemas.head import Labels


def class_names(labels: Labels) -> tuple[str, ...]:
    """Names by id.

    Raises:
        ValueError: no classes in the spec, and no description beside the shards; one that cannot be read; or a name
            that two classes have.
    """
    if isinstance(labels.classes, int):
        return tuple(f"class {number}" for number in range(labels.classes))
    names = tuple(labels.classes or _described(labels))
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"labels.classes: classes {names.index(name)} and {names.index(name, names.index(name) + 1)} are both"
            f" {name!r}; give each a name of its own"
        )
    return names


def _described(labels: Labels) -> list[str]:
    """By the description beside the shards."""
    root = embedded.SHARDS if labels.root == "embedded" else labels.root
    fs, folder = storage.open_fs(root)
    try:
        return Dataset.model_validate_json(fs.cat_file(f"{folder}/{DATASET}")).classes
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"labels.classes is not given, and {root} has no {DATASET}; give the classes' names, or how many there are"
        ) from None
    except ValidationError as error:
        raise ValueError(
            f"{root}/{DATASET} is not what `gatehouse shard --dataset` writes ({error.errors()[0]['msg']}); give"
            " labels.classes"
        ) from error
