"""A backbone whose network has learned nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline import checkpoint, embedded, families
from pipeline.benefit.untrained import write_untrained


def test_only_the_network_differs(tmp_path: Path) -> None:
    backbone = families.load(Path(embedded.BACKBONE), dtype=torch.float32, device="cpu")
    write_untrained(backbone, tmp_path / "untrained")
    other = families.load(tmp_path / "untrained", dtype=torch.float32, device="cpu")
    ours, theirs = backbone.network.state_dict(), other.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert not any(torch.equal(ours[name], theirs[name]) for name in ours if name.endswith("conv1.weight"))
    for part in ("vae", "text_encoder"):
        assert checkpoint.fingerprint(Path(embedded.BACKBONE), [part]) == checkpoint.fingerprint(
            tmp_path / "untrained", [part]
        )


def test_a_seed_gives_the_same_network_again(tmp_path: Path) -> None:
    backbone = families.load(Path(embedded.BACKBONE), dtype=torch.float32, device="cpu")
    for name in ("one", "two"):
        write_untrained(backbone, tmp_path / name, seed=3)
    one, two = (checkpoint.fingerprint(tmp_path / name, ["unet"]) for name in ("one", "two"))
    assert one == two
