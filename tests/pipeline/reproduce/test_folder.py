"""A work folder keeps to one set of options, and takes specs as their files say them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.reproduce.experiments import EXPERIMENTS
from pipeline.reproduce.folder import WorkFolder
from pipeline.reproduce.options import Options
from pipeline.reproduce.specs import lora_spec
from schemas.specfile import SpecError

HORSE = Options(name="horse21")


def test_one_set_of_options(tmp_path: Path) -> None:
    """Else a quick run's LoRAs and heads would be taken for a full one's."""
    folder = WorkFolder(str(tmp_path / "work"))
    folder.claim(HORSE)
    folder.claim(HORSE)
    before = (tmp_path / "work" / "reproduce.json").read_bytes()
    with pytest.raises(
        ValueError,
        match=r"other options:\n  quick: the folder has False, this command True\nGive another --work",
    ):
        folder.claim(Options(name="horse21", quick=True))
    assert (tmp_path / "work" / "reproduce.json").read_bytes() == before


def test_options_of_another_release(tmp_path: Path) -> None:
    folder = WorkFolder(str(tmp_path))
    folder.write("reproduce.json", '{"version": 2, "name": "horse21"}')
    with pytest.raises(ValueError, match=r"reproduce.json: cannot be read .* use the release that wrote it"):
        folder.check(HORSE)


@pytest.mark.parametrize("path", ["s3://bucket/work", ""])
def test_only_a_local_folder(path: str) -> None:
    with pytest.raises(ValueError, match=r"--work is '.*'; give a local folder"):
        WorkFolder(path)


def test_a_spec_is_written_once(tmp_path: Path) -> None:
    """With the command that runs it; what the user changes then stays."""
    folder = WorkFolder(str(tmp_path))
    made = lora_spec(EXPERIMENTS["horse21"], HORSE, str(tmp_path))
    assert folder.spec("lora", made, "train-lora") == made
    path = folder.spec_path("lora")
    assert path.read_text().startswith(f"# gatehouse train-lora {path}\nversion: 1\n")
    path.write_text(path.read_text().replace("steps: 1500", "steps: 1600"))
    assert folder.spec("lora", made, "train-lora").steps == 1600


def test_a_spec_that_is_none_any_more(tmp_path: Path) -> None:
    folder = WorkFolder(str(tmp_path))
    made = lora_spec(EXPERIMENTS["horse21"], HORSE, str(tmp_path))
    folder.write("specs/lora.yaml", "version: 1\nsteps: many\n")
    with pytest.raises(SpecError, match=r"lora.yaml:2:8: steps: found 'many'"):
        folder.spec("lora", made, "train-lora")
