"""An experiment's work folder: one user's options for ever, and its jobs' specs, which the user may change."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from pipeline import storage
from pipeline.differences import told
from pipeline.reproduce.options import Options
from schemas.dataset import DATASET, Dataset
from schemas.model import Model
from schemas.specfile import dump, load

_OPTIONS = "reproduce.json"
M = TypeVar("M", bound=Model)


class WorkFolder:
    """A local folder.

    Args:
        path: need not exist yet.

    Raises:
        ValueError: a URL.
    """

    def __init__(self, path: str) -> None:
        if "://" in path or not path:
            raise ValueError(
                f"--work is {path!r}; give a local folder, since checkpoints are replaced in place (features may lie"
                " elsewhere: --store)"
            )
        self.path = Path(path).absolute()

    def claim(self, options: Options) -> None:
        """Make the folder these options'.

        Raises:
            ValueError: it is those of others; lists every difference.
        """
        self.check(options)
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / _OPTIONS
        if not file.exists():
            self.write(_OPTIONS, options.model_dump_json(indent=1))

    def check(self, options: Options) -> None:
        """Refuse a folder of other options; see `claim`."""
        file = self.path / _OPTIONS
        if not file.exists():
            return
        try:
            stored = Options.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise ValueError(
                f"{file}: cannot be read ({error.errors()[0]['msg']}); use the release that wrote it, or another --work"
            ) from error
        if found := told(stored.model_dump(), options.model_dump(), "folder"):
            raise ValueError(
                f"{self.path} is the work of other options:\n{found.replace('the spec', 'this command')}\n"
                "Give another --work, or the same options."
            )

    def spec_path(self, name: str) -> Path:
        """Of a job's spec."""
        return self.path / "specs" / f"{name}.yaml"

    def spec(self, name: str, made: M, command: str) -> M:
        """A job's spec as its file says it; written first, where there is none.

        Args:
            name: of the file.
            made: what to write.
            command: of `gatehouse` that runs it.

        Raises:
            ValueError: the file is no spec any more.
        """
        path = self.spec_path(name)
        if not path.exists():
            self.write(f"specs/{name}.yaml", f"# gatehouse {command} {path}\n{dump(made)}")
        return load(str(path), model=type(made))

    @property
    def shards(self) -> Path:
        """Where the data set's shards are."""
        return self.path / "shards"

    @property
    def dataset(self) -> Dataset | None:
        """What the shards hold; None as long as they are not all there."""
        file = self.shards / DATASET
        return Dataset.model_validate_json(file.read_bytes()) if file.exists() else None

    def write(self, name: str, text: str) -> None:
        """A file, whole or not at all."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.put(LocalFileSystem(), str(path), text.encode())
