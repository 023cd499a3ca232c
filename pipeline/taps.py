"""Recording taps: what the layers of a network compute, and of which shape it is.

`Recorder` is the engine: it runs a call of the network and returns what the asked taps held. `record` calls
the network of any supported pipeline for it; `shapes` says what a recording would give, from the config alone.
Where the sites are is in `pipeline.sites`, how maps are made in `pipeline.maps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from pipeline import attn, families
from pipeline.maps import MAX_MAP_BYTES
from pipeline.meta import meta_call, on_meta
from pipeline.recorder import Recorder, config_of
from pipeline.techniques.controlnet import add_residuals
from schemas import taps as vocabulary

__all__ = ["MAX_MAP_BYTES", "Recorder", "record", "shapes"]


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
    """The taps of one call of a pipeline's network; what comes back is as `Recorder.run` says.

    latents: [B, c, h, w], the network's literal input, neither noised nor scaled here; FLUX's are packed here.
    timestep: what the network sees, one number or [B]; in thousandths for SD3 and FLUX.
    prompt_embeds: [B, tokens, C]; pooled_prompt_embeds: [B, C], which SDXL, SD3 and FLUX need.
    controlnet, control_image: a ControlNet and its image [B, 3, 8h, 8w] in [0, 1], both or neither; it gets
        the same latents, timestep and text as the UNet, at conditioning scale 1.
    model_inputs: further encodings of the prompt (`prompt_attention_mask`, `prompt_embeds_2`...: what the family's
        `encode_text` gives), and arguments of the network, which go before those that are made here. SDXL's
        time ids are (8h, 8w, 0, 0, 8h, 8w) unless `added_cond_kwargs` has others.

    `attn` is made with the defaults of `pipeline.attn`. Named inputs are moved to the network's device and dtype.
    Raises ValueError for a pipeline without a network that has taps, for an input that is missing, and as
    `schemas.taps.resolve`.
    """
    network = _network(pipe)
    if (controlnet is None) != (control_image is None):
        absent = "controlnet" if controlnet is None else "control_image"
        raise ValueError(f"of controlnet and control_image, {absent} is missing; give both or neither")
    wanted, sites, sources = _sources(taps, config_of(network))
    text = {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled_prompt_embeds}
    text |= {name: model_inputs.pop(name) for name in list(model_inputs) if name.startswith("prompt_")}
    if "added_cond_kwargs" in model_inputs:  # they hold SDXL's pooled text
        text["pooled_prompt_embeds"] = model_inputs["added_cond_kwargs"].get(
            "text_embeds", pooled_prompt_embeds
        )
    inputs = _inputs(network, latents, timestep, text)

    if controlnet is not None and not isinstance(network, UNet2DConditionModel):
        raise ValueError(f"a {type(network).__name__} takes no ControlNet here; leave it out")

    def call() -> None:
        steered = inputs
        if controlnet is not None and control_image is not None:
            image = control_image.to(network.device, network.dtype)
            steered = add_residuals(controlnet, inputs, image)
        network(**{**steered, **model_inputs})

    with torch.no_grad():
        found = Recorder(network, sites).run(call)
        if sources:
            size = (latents.shape[2], latents.shape[3])
            found[vocabulary.ATTN] = attn.aggregate({tap: found[tap] for tap in sources}, size)
    return {tap: found[tap] for tap in wanted}


def _network(pipe: Any) -> Any:
    for part in ("unet", "transformer"):
        network = getattr(pipe, part, None)
        if network is not None:
            return network
    raise ValueError(
        f"{type(pipe).__name__} has neither a UNet nor a transformer; taps are recorded in pipelines with one"
    )


def _inputs(
    network: Any, latents: Tensor, timestep: float | Tensor, text: Mapping[str, Tensor | None]
) -> dict[str, Any]:
    """The network's arguments, as its family makes them, on its device and in its dtype."""

    def placed(value: Tensor) -> Tensor:
        return value.to(network.device, network.dtype if value.is_floating_point() else value.dtype)

    time = timestep.to(network.device) if isinstance(timestep, Tensor) else timestep
    given = {name: placed(value) for name, value in text.items() if value is not None}
    return families.for_network(network).inputs(network, placed(latents), time, given)


def shapes(
    network_class: Any,
    config: Mapping[str, Any],
    taps: str | Sequence[str],
    inputs: Callable[[Any], Mapping[str, Any]],
) -> dict[str, tuple[int, ...]]:
    """The shape of each tap for one image, without batch axis: [C, h, w] or [heads, query, key].

    network_class, config: of the network, which runs on torch's meta device, that knows shapes only: no weights
    are needed and nothing is computed. inputs: the network -> its keyword arguments for one image, as tensors
    anywhere. A map too large to record is listed all the same; `attn` is not, since its choices are a group's.
    Raises as `schemas.taps.resolve`.
    """
    vocabulary.resolve(taps, config)  # before the second or two that building the network takes
    network = on_meta(network_class, config)
    recorder = Recorder(network, taps, max_map_bytes=math.inf)
    features = recorder.run(meta_call(network, inputs))
    return {tap: tuple(value.shape[1:]) for tap, value in features.items()}


def _sources(taps: str | Sequence[str], config: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """The taps that are asked for, the sites to record, and those of them that `attn` is made of."""
    wanted = vocabulary.resolve(taps, config)
    sources = attn.sources(config) if vocabulary.ATTN in wanted else []
    return wanted, [tap for tap in wanted if tap != vocabulary.ATTN] + sources, sources
