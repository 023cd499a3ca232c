"""LoRA files: which layers they change and by what, in the spellings of the tools that write them.

    diffusers  unet.mid_block.attentions.0.proj_in.lora_A.weight, also .lora.down.weight and .processor.to_q_lora.down
    PEFT       base_model.model.mid_block.attentions.0.proj_in.lora_A.weight, alpha in the adapter's config
    kohya      lora_unet_mid_block_attentions_0_proj_in.lora_down.weight, .alpha, LyCORIS's .lora_mid and .hada_w1_a

A file's layers are named here as it spells them; `pipeline.techniques.lora_layers` finds the modules.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

NETWORK = "network"
"""The part of a backbone that is its UNet or transformer."""

_UNDERSCORED = re.compile(r"lora_(unet|transformer|te\d?)_")
_DOTTED = re.compile(r"(?:(unet|transformer|text_encoder(?:_\d)?)\.)?(base_model\.model\.)?")
_PARTS = {
    "unet": NETWORK,
    "transformer": NETWORK,
    "te": "text_encoder",
    "te1": "text_encoder",
    "te2": "text_encoder_2",
    "te3": "text_encoder_3",
}
_ROLE = re.compile(
    r"(?P<name>.+?)(?:"
    r"[._]lora[._](?:linear_layer\.)?(?P<lora>down|up|mid|A|B)(?:\.\w+)?\.weight"  # PEFT may name the adapter
    r"|\.(?P<hada>hada_(?:w[12]_[ab]|t[12]))"
    r"|(?:[._]lora)?\.(?P<alpha>alpha))"
)
_PEFT = {"A": "down", "B": "up"}
_COMPLETE = (
    {"down", "up"},
    {"down", "up", "mid"},
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"},
)
_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "oft_": "OFT",
    ".diff": "full differences",
    ".bias": "changes of biases",
    ".on_input": "IA3",
}


class Site(NamedTuple):
    """A layer, as a file names it."""

    part: str
    """`NETWORK` or a text encoder's component, `text_encoder_2`."""
    name: str
    """Within the part, with dots or, in kohya's files, underscores."""


@dataclass(frozen=True)
class Change:
    """What is added to one layer's weight: a product of factors, times `scale` and the technique's own."""

    factors: Mapping[str, Tensor]
    scale: float
    """alpha / rank, or 1 where the file states no alpha."""

    def product(self) -> Tensor:
        """The change before any scale, float32, [out, in], [out, in, kh, kw] or flattened from the second axis on.

        LoRA and LoCon: B A. With a core M (`lora_mid`), the kernel of the convolutions A, M, B in a row. LoHa:
        (A1 B1) * (A2 B2), element by element; with cores, each factor is such a product of three.
        """
        of = {role: factor.float() for role, factor in self.factors.items()}
        if "mid" in of:
            return torch.einsum("or,rskl,si->oikl", of["up"].flatten(1), of["mid"], of["down"].flatten(1))
        if "up" in of:
            return of["up"].flatten(1) @ of["down"].flatten(1)
        if "hada_t1" in of:
            first, second = (
                torch.einsum("rskl,ro,si->oikl", of[f"hada_t{n}"], of[f"hada_w{n}_a"], of[f"hada_w{n}_b"])
                for n in (1, 2)
            )
            return first * second
        return (of["hada_w1_a"] @ of["hada_w1_b"]) * (of["hada_w2_a"] @ of["hada_w2_b"])

    def add_to(self, weight: Tensor, scale: float) -> None:
        """Change a float32 weight, which must be contiguous, in place."""
        flat = weight.view(len(weight), -1)
        if set(self.factors) == {"up", "down"}:  # in one go: the largest layers are of this kind
            up, down = (self.factors[role].flatten(1).float() for role in ("up", "down"))
            flat.addmm_(up, down, alpha=scale * self.scale)
        else:
            flat.add_(self.product().reshape(flat.shape), alpha=scale * self.scale)


def rank(factors: Mapping[str, Tensor]) -> int:
    """The inner dimension of a layer's product."""
    return factors["down" if "down" in factors else "hada_w1_b"].shape[0]


class LoraFile:
    """The header of one file.

    Args:
        path: local.
        source: as the spec names it, for messages.

    Raises:
        ValueError: no safetensors, keys of formats that are not supported, factors without their counterparts, a PEFT
            file whose alpha is not known.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.subject = path, f"lora {source!r}"
        self.config_path: Path | None = None
        """The file beside it that states alpha, if it is one of PEFT's."""
        self._config: dict[str, Any] = {}
        try:
            with safe_open(path, "pt") as file:
                keys, self.metadata = list(file.keys()), dict(file.metadata() or {})
        except SafetensorError as error:
            raise ValueError(
                f"{self.subject} is no safetensors file ({error}); other formats are pickles, which can run code:"
                " convert it"
            ) from error
        self._keys = self._sorted_by_site(keys)
        self._read_config(any(key.startswith("base_model.model.") for key in keys))

    @property
    def sites(self) -> list[Site]:
        """All layers that the file changes."""
        return list(self._keys)

    def changes(self, device: torch.device | str) -> dict[Site, Change]:
        """Everything in the file, loaded; on the device `meta` shapes only."""
        found = {}
        with safe_open(self.path, "pt") as file:
            for site, keys in self._keys.items():
                alpha = float(file.get_tensor(keys["alpha"])) if "alpha" in keys else None
                factors = {
                    role: torch.empty(file.get_slice(key).get_shape(), device="meta")
                    if str(device) == "meta"
                    else file.get_tensor(key).to(device)
                    for role, key in keys.items()
                    if role != "alpha"
                }
                found[site] = Change(factors, self._scale(site, alpha, rank(factors)))
        return found

    def _sorted_by_site(self, keys: list[str]) -> dict[Site, dict[str, str]]:
        """Layer -> role of a factor in its product -> key."""
        sites: dict[Site, dict[str, str]] = {}
        unknown = []
        for key in keys:
            place, rest = _part(key)
            match = _ROLE.fullmatch(rest)
            if match is None:
                unknown.append(key)
                continue
            role = match["hada"] or match["alpha"] or _PEFT.get(match["lora"], match["lora"])
            sites.setdefault(Site(place, match["name"].replace(".processor.", ".")), {})[role] = key
        if unknown:
            kinds = {kind for key in unknown for mark, kind in _OTHER_KINDS.items() if mark in key}
            raise ValueError(
                f"{self.subject} has {', '.join(sorted(kinds)) or 'keys of an unknown format'}, such as"
                f" {some(unknown)}; supported are LoRA, LoCon and LoHa as diffusers, PEFT and kohya write them"
            )
        for site, roles in sites.items():
            if set(roles) - {"alpha"} not in _COMPLETE:
                raise ValueError(
                    f"{self.subject}: the layer {site.name!r} has only {some(list(roles.values()))}, and a factor"
                    " without its counterpart means nothing; the file is cut short or of an unknown format"
                )
        if not sites:
            raise ValueError(f"{self.subject} is empty")
        return sites

    def _read_config(self, by_peft: bool) -> None:
        """What else is known of alpha: diffusers' metadata, or the config that PEFT writes beside its file."""
        beside = self.path.with_name("adapter_config.json")
        if "lora_adapter_metadata" in self.metadata:
            self._config = self._parsed(self.metadata["lora_adapter_metadata"], "its metadata")
        elif by_peft and beside.is_file():
            self.config_path = beside
            self._config = json.loads(beside.read_text())
        elif by_peft and not any("alpha" in keys for keys in self._keys.values()):
            raise ValueError(
                f"{self.subject} was written by PEFT, which states alpha in adapter_config.json only, and there is"
                " none beside it; put it there (local files only), or save with diffusers' save_lora_adapter"
            )

    def _parsed(self, text: str, name: str) -> dict[str, Any]:
        try:
            config = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{self.subject}: {name} is no JSON ({error}); get the file again") from error
        if not isinstance(config, dict):
            raise ValueError(f"{self.subject}: {name} is a {type(config).__name__}, and must be an object")
        return config

    def _scale(self, site: Site, alpha: float | None, dimension: int) -> float:
        config = _of_part(self._config, site.part)
        if alpha is None and config:
            alpha = config.get("lora_alpha", config.get("alpha"))
            for pattern, value in (config.get("alpha_pattern") or {}).items():
                if re.fullmatch(rf"(.*\.)?({pattern})", site.name):
                    alpha = value
                    break
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(dimension) if config.get("use_rslora") else dimension)


def _part(key: str) -> tuple[str, str]:
    """The part of the backbone that a key is about, and the rest of it."""
    match = _UNDERSCORED.match(key) or _DOTTED.match(key)
    assert match is not None  # _DOTTED matches everything
    return _PARTS.get(match[1], match[1] or NETWORK), key[match.end() :]


def _of_part(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The part's own entries of diffusers' metadata, or all where nothing is prefixed."""
    prefixes = ("unet.", "transformer.", "") if part == NETWORK else (f"{part}.",)
    for prefix in prefixes:
        found = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
        if found:
            return found
    return {}


def some(names: list[str]) -> str:
    """A few names, for a message."""
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
