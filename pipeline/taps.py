"""Recording taps: forward hooks on unmodified diffusers modules, and a network that stops after the last tap.

`Recorder` is the engine: it runs a call of the network and returns what the asked taps held. `record` calls
the UNet of any Stable Diffusion pipeline for it; `shapes` says what a recording would give, from the config
alone.

Attention maps are computed beside the network, from the queries and keys that its own layers made. So the
network's output does not depend on the taps, and no layer leaves the fused attention path, not even one whose
map is asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from schemas import taps as vocabulary

MAX_MAP_BYTES = 2**30
"""Of one attention map of one batch, in the float32 it is computed in."""

_NAME = re.compile(r"(?:(down|up)-level(\d+)|(mid))(?:-repeat(\d+))?-(.+)")
_ENDS = {"unet-in": "conv_in", "unet-after-conv-in": "conv_in", "unet-out": "conv_out"}
_IN_UNIT = {  # site of a level -> module within the block, {} being the repeat
    "res-increment": "resnets.{}.conv2",
    "res-out": "resnets.{}",
    "vit-out": "attentions.{}",
    "downsampler-out": "downsamplers.0",
    "upsampler-out": "upsamplers.0",
}
_IN_TRANSFORMER = {  # site of a transformer block -> module within it
    "self-q": ".attn1.to_q",
    "self-k": ".attn1.to_k",
    "self-v": ".attn1.to_v",
    "self-map": ".attn1",
    "cross-q": ".attn2.to_q",
    "cross-map": ".attn2",
    "ffn-inner": ".ff.net.0",
    "out": "",
}


class Recorder:
    """Runs a UNet and keeps the activations at some taps.

        recorder = Recorder(unet, ["legacy", "mid-vit-out"])
        features = recorder.run(lambda: unet(latents, timestep, encoder_hidden_states=text))

    Hooks are attached for the time of one `run`, to the modules as they are then: adapters (LoRA) that were
    injected or removed since the last one count, and between runs the network carries no trace of it.
    Attaching costs microseconds a tap. Not for two threads at once on one network.
    """

    def __init__(
        self, network: Any, taps: str | Sequence[str], *, max_map_bytes: float = MAX_MAP_BYTES
    ) -> None:
        """`network` is a UNet2DConditionModel, `taps` what `schemas.taps.resolve` takes, and raises for."""
        self.network = network
        self.max_map_bytes = max_map_bytes
        self.taps = vocabulary.resolve(taps, network.config)
        """The taps that are recorded, in the network's order."""
        self._sites = {tap: _locate(tap) for tap in self.taps}

    def run(self, call: Callable[[], object]) -> dict[str, Tensor]:
        """Make `call`, which must run the network, and return {tap: tensor} in the network's order.

        Maps are [B, C, h, w] and attention maps [B, heads, query, key]: detached, contiguous copies, in the
        dtype and on the device of the activation. The network stops as soon as the last of them is known, and
        `call` with it.

        Raises RuntimeError where the call ends and a tap has not fired, and ValueError for an attention map
        larger than `max_map_bytes`; whatever `call` raises passes through. In each case the hooks are gone.
        """
        taken: dict[str, Tensor] = {}
        handles: list[RemovableHandle] = []
        try:
            self._attach(taken, handles)
            call()
        except _AllTaken:
            return {tap: taken[tap] for tap in self.taps}
        finally:
            for handle in handles:
                handle.remove()
        missing = [tap for tap in self.taps if tap not in taken]
        raise RuntimeError(
            f"{len(missing)} of {len(self.taps)} taps did not fire, first {missing[0]}: the call ran to its "
            f"end. It must run the recorder's own network, with query, key and value projections unfused"
        )

    def _attach(self, taken: dict[str, Tensor], handles: list[RemovableHandle]) -> None:
        grids: dict[str, tuple[int, int]] = {}  # (h, w) that each transformer is at work on

        def take(tap: str, value: Tensor) -> None:
            grid = self._sites[tap].transformer
            if grid is not None:
                value = value.unflatten(1, grids[grid]).movedim(-1, 1)  # [B, hw, C] -> [B, C, h, w]
            # A copy, since some networks add adapter residuals to their own activations in place.
            taken[tap] = value.detach().clone(memory_format=torch.contiguous_format)
            if len(taken) == len(self.taps):
                raise _AllTaken

        # Before all other hooks, so that a grid is known by the time a tap inside the transformer fires.
        for path in {site.transformer for site in self._sites.values() if site.transformer is not None}:
            hook = _grid_hook(path, grids)
            handles.append(self.network.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))
        for tap, site in self._sites.items():
            module = self.network.get_submodule(site.path)
            if vocabulary.kind(tap) == "attention":
                handles.extend(_map_hooks(tap, module, take, self.max_map_bytes))
            elif tap == "unet-in":
                handles.append(module.register_forward_pre_hook(_input_hook(tap, take)))
            else:
                handles.append(module.register_forward_hook(_output_hook(tap, take)))


def record(
    pipe: Any,
    latents: Tensor,
    timestep: float | Tensor,
    prompt_embeds: Tensor,
    taps: str | Sequence[str],
    *,
    pooled_prompt_embeds: Tensor | None = None,
    controlnet: nn.Module | None = None,
    control_image: Tensor | None = None,
    **model_inputs: Any,
) -> dict[str, Tensor]:
    """The taps of one call of a pipeline's UNet; what comes back is as `Recorder.run` says.

    latents: [B, 4, h, w], the network's literal input, neither noised nor scaled here.
    timestep: what the network sees, one number or [B].
    prompt_embeds: [B, tokens, C]; pooled_prompt_embeds: [B, C], used by SDXL only, which needs them.
    controlnet, control_image: a ControlNet and its image [B, 3, 8h, 8w] in [0, 1], both or neither; it gets
        the same latents, timestep and text as the UNet, at conditioning scale 1.
    model_inputs: further arguments of the UNet, as they are. SDXL's `added_cond_kwargs` are made here unless
        given, with time ids (8h, 8w, 0, 0, 8h, 8w).

    Named inputs are moved to the UNet's device and dtype. Raises ValueError for a pipeline without a UNet,
    for an input that is missing, and as `schemas.taps.resolve`.
    """
    network = getattr(pipe, "unet", None)
    if network is None:
        raise ValueError(
            f"{type(pipe).__name__} has no UNet; taps are recorded in pipelines with a UNet2DConditionModel"
        )
    if (controlnet is None) != (control_image is None):
        absent = "controlnet" if controlnet is None else "control_image"
        raise ValueError(f"of controlnet and control_image, {absent} is missing; give both or neither")
    place = {"device": network.device, "dtype": network.dtype}
    latents = latents.to(**place)
    inputs: dict[str, Any] = {"timestep": timestep, "encoder_hidden_states": prompt_embeds.to(**place)}
    if isinstance(timestep, Tensor):
        inputs["timestep"] = timestep.to(network.device)
    if "added_cond_kwargs" in model_inputs:
        inputs["added_cond_kwargs"] = model_inputs.pop("added_cond_kwargs")
    elif network.config.addition_embed_type == "text_time":
        inputs["added_cond_kwargs"] = _text_time(latents, pooled_prompt_embeds)
    recorder = Recorder(network, taps)

    def call() -> None:
        residuals = {}
        if controlnet is not None and control_image is not None:
            image = control_image.to(**place)
            down, mid = controlnet(latents, controlnet_cond=image, return_dict=False, **inputs)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        network(latents, **inputs, **residuals, **model_inputs)

    with torch.no_grad():
        return recorder.run(call)


def shapes(
    unet_config: Mapping[str, Any], taps: str | Sequence[str], latent_size: tuple[int, int], tokens: int
) -> dict[str, tuple[int, ...]]:
    """The shape of each tap for one image, without batch axis: [C, h, w] or [heads, query, key].

    latent_size: (h, w) of the latents; tokens: length of the prompt's encoding. Runs the network on torch's
    meta device, which knows shapes only: no weights are needed and nothing is computed. A map too large to
    record is listed all the same. Raises as `schemas.taps.resolve`.
    """
    vocabulary.resolve(taps, unet_config)  # before the second or two that building the network takes
    with torch.device("meta"), torch.no_grad():
        network = UNet2DConditionModel.from_config(dict(unet_config)).eval()
        config = network.config
        width = config.cross_attention_dim
        latents = torch.empty(1, config.in_channels, *latent_size)
        text = torch.empty(1, tokens, width if isinstance(width, int) else width[-1])
        inputs: dict[str, Any] = {}
        if config.addition_embed_type == "text_time":
            pooled_width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            inputs["added_cond_kwargs"] = _text_time(latents, torch.empty(1, pooled_width))
        recorder = Recorder(network, taps, max_map_bytes=math.inf)
        features = recorder.run(lambda: network(latents, torch.zeros(1), text, **inputs))
    return {tap: tuple(value.shape[1:]) for tap, value in features.items()}


def _text_time(latents: Tensor, pooled: Tensor | None) -> dict[str, Tensor]:
    """SDXL's second conditioning: pooled text, and original size, crop and target size in pixels."""
    if pooled is None:
        raise ValueError(
            "this UNet needs pooled_prompt_embeds [B, C], as all of SDXL's layout do, and got none"
        )
    batch, _, height, width = latents.shape
    time_ids = torch.tensor([8 * height, 8 * width, 0, 0, 8 * height, 8 * width])
    return {"text_embeds": pooled.to(latents), "time_ids": time_ids.to(latents).expand(batch, -1)}


class _AllTaken(Exception):
    """Leaves the network's forward pass once every tap has fired."""


@dataclass(frozen=True)
class _Site:
    """A module's path and, where the tap holds tokens [B, hw, C], the path of the transformer around it."""

    path: str
    transformer: str | None = None


def _locate(tap: str) -> _Site:
    if tap in _ENDS:
        return _Site(_ENDS[tap])
    match = _NAME.fullmatch(tap)
    assert match, tap  # names come from the vocabulary
    stage, level, mid, repeat, site = match.groups()
    block = "mid_block" if mid else f"{stage}_blocks.{level}"
    unit = repeat or "0"  # the mid block's attention has no repeat
    if site in _IN_UNIT:
        return _Site(f"{block}.{_IN_UNIT[site].format(unit)}")
    index, site = site.removeprefix("vit-block").split("-", 1)
    transformer = f"{block}.attentions.{unit}"
    path = f"{transformer}.transformer_blocks.{index}{_IN_TRANSFORMER[site]}"
    return _Site(path, None if vocabulary.kind(tap) == "attention" else transformer)


Take = Callable[[str, Tensor], None]


def _input_hook(tap: str, take: Take) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        take(tap, args[0])

    return hook


def _output_hook(tap: str, take: Take) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        take(tap, output if isinstance(output, Tensor) else output[0])  # attention modules return a tuple

    return hook


def _grid_hook(path: str, grids: dict[str, tuple[int, int]]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        image = args[0] if args else kwargs["hidden_states"]  # [B, C, h, w]
        grids[path] = (image.shape[2], image.shape[3])

    return hook


def _map_hooks(tap: str, attention: Any, take: Take, max_bytes: float) -> list[RemovableHandle]:
    """Compute the attention map from the outputs of the layer's own query and key projections."""
    seen: dict[str, Any] = {}

    def on_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["mask"] = kwargs.get("attention_mask")

    def on_query(module: nn.Module, args: tuple[Any, ...], query: Tensor) -> None:
        seen["query"] = query

    def on_key(module: nn.Module, args: tuple[Any, ...], key: Tensor) -> None:
        query = seen.pop("query")
        _check_size(tap, query, key, attention.heads, max_bytes)
        take(tap, _attention_map(attention, query, key, seen.pop("mask")))

    return [
        attention.register_forward_pre_hook(on_call, with_kwargs=True),
        attention.to_q.register_forward_hook(on_query),
        attention.to_k.register_forward_hook(on_key),
    ]


def _check_size(tap: str, query: Tensor, key: Tensor, heads: int, max_bytes: float) -> None:
    batch, queries, keys = query.shape[0], query.shape[1], key.shape[1]
    size = 4 * batch * heads * queries * keys
    if size > max_bytes:
        raise ValueError(
            f"tap {tap}: {batch} images x {heads} heads x {queries} x {keys} tokens in float32 are "
            f"{size / 2**30:.2f} GiB, more than the {max_bytes / 2**30:.2f} GiB allowed for one map; take "
            f"smaller images, fewer at once, or the map of a level with a lower resolution"
        )


def _attention_map(attention: Any, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask), [B, heads, query, key], in float32 and then in the query's dtype."""
    q, k = (x.float().unflatten(-1, (attention.heads, -1)).transpose(1, 2) for x in (query, key))
    scores = (q * attention.scale) @ k.transpose(-1, -2)
    if mask is not None:
        batch, tokens = key.shape[:2]
        mask = attention.prepare_attention_mask(mask, tokens, batch)  # [B * heads, 1 or query, key]
        scores = scores + mask.unflatten(0, (batch, attention.heads))
    return scores.softmax(dim=-1).to(query.dtype)
