"""Recording taps: forward hooks on unmodified diffusers modules, and a network that stops after the last tap.

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
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from pipeline import attn, families
from pipeline.maps import MAX_MAP_BYTES, Scores, attention_map, watch
from pipeline.sites import Grid, Site, grid_of, locate
from schemas import taps as vocabulary

__all__ = ["MAX_MAP_BYTES", "Recorder", "record", "shapes"]


class Recorder:
    """Runs a network and keeps the activations at some taps.

        recorder = Recorder(unet, ["legacy", "mid-vit-out"])
        features = recorder.run(lambda: unet(latents, timestep, encoder_hidden_states=text))

    Hooks are attached for the time of one `run`, to the modules as they are then: adapters (LoRA) that were
    injected or removed since the last one count, and between runs the network carries no trace of it.
    Attaching costs microseconds a tap. Not for two threads at once on one network.
    """

    def __init__(
        self, network: Any, taps: str | Sequence[str], *, max_map_bytes: float = MAX_MAP_BYTES
    ) -> None:
        """`network` is of a class with tap names, `taps` what `schemas.taps.resolve` takes, and raises for.

        Of `attn`, record what `attn.sources` says and give that to `attn.aggregate`.
        """
        self.network = network
        self.max_map_bytes = max_map_bytes
        config = config_of(network)
        self.taps = vocabulary.resolve(taps, config)
        """The taps that are recorded, in the network's order."""
        if vocabulary.ATTN in self.taps:
            raise ValueError("'attn' is made of several maps: record attn.sources(config) for attn.aggregate")
        self._sites = {tap: locate(tap, config) for tap in self.taps}

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

    def keep(self, tap: str, value: Callable[[], Tensor]) -> Tensor:
        """What is kept of a tap that fires, from its value; called once a tap and run."""
        return value()

    def _attach(self, taken: dict[str, Tensor], handles: list[RemovableHandle]) -> None:
        grids: dict[str, Grid] = {}

        def take(tap: str, value: Callable[[], Tensor]) -> None:
            taken[tap] = self.keep(tap, value)
            if len(taken) == len(self.taps):
                raise _AllTaken

        # Before all other hooks, so that a grid is known by the time a tap on it fires.
        for path in {site.grid for site in self._sites.values() if site.grid is not None}:
            hook = _grid_hook(path, grids)
            handles.append(self.network.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))
        for tap, site in self._sites.items():
            module = self.network.get_submodule(site.path)
            if site.takes == "map":
                handles.extend(self._hook_map(tap, site, module, grids, take))
            elif site.takes == "input":
                hook = _input_hook(tap, site, grids, take)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_output_hook(tap, site, grids, take)))

    def _hook_map(
        self, tap: str, site: Site, attention: nn.Module, grids: Mapping[str, Grid], take: Take
    ) -> list[RemovableHandle]:
        how, path = vocabulary.as_map(tap), site.grid
        assert how is not None and path is not None, tap

        def done(scores: Scores) -> None:
            take(tap, lambda: attention_map(scores, site.keys, grids[path], how, self.max_map_bytes))

        return watch(attention, lambda: grids[path], done)


Take = Callable[[str, Callable[[], Tensor]], None]


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

    def call() -> None:
        residuals = {}
        if controlnet is not None:
            residuals = _residuals(network, controlnet, control_image, inputs)
        network(**{**inputs, **residuals, **model_inputs})

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


def _residuals(
    network: Any, controlnet: nn.Module, image: Tensor | None, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    if not isinstance(network, UNet2DConditionModel):
        raise ValueError(f"a {type(network).__name__} takes no ControlNet here; leave it out")
    assert image is not None
    image = image.to(network.device, network.dtype)
    down, mid = controlnet(**inputs, controlnet_cond=image, return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


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


def on_meta(network_class: Any, config: Mapping[str, Any]) -> Any:
    """A network without weights, on the meta device."""
    with torch.device("meta"):
        return network_class.from_config(dict(config)).eval()


def meta_call(network: Any, inputs: Callable[[Any], Mapping[str, Any]]) -> Callable[[], object]:
    """A call of a network on the meta device."""
    given = {name: _to_meta(name, value) for name, value in inputs(network).items()}

    def call() -> object:
        with torch.device("meta"), torch.no_grad():
            return network(**given)

    return call


def config_of(network: Any) -> dict[str, Any]:
    """A network's config, with its class: one that was not loaded from a file lacks that."""
    return {**network.config, "_class_name": type(network).__name__}


def _to_meta(name: str, value: Any) -> Any:
    if name in ("img_ids", "txt_ids"):
        return value  # positions: their values say how FLUX's tokens are laid out
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, Mapping):
        return {key: _to_meta(key, one) for key, one in value.items()}
    return type(value)(_to_meta("", one) for one in value) if isinstance(value, list | tuple) else value


def _sources(taps: str | Sequence[str], config: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """The taps that are asked for, the sites to record, and those of them that `attn` is made of."""
    wanted = vocabulary.resolve(taps, config)
    sources = attn.sources(config) if vocabulary.ATTN in wanted else []
    return wanted, [tap for tap in wanted if tap != vocabulary.ATTN] + sources, sources


class _AllTaken(Exception):
    """Leaves the network's forward pass once every tap has fired."""


def _grid_hook(path: str, grids: dict[str, Grid]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        grids[path] = grid_of(module, args, kwargs)

    return hook


def _input_hook(tap: str, site: Site, grids: Mapping[str, Grid], take: Take) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = args[0] if args else kwargs["hidden_states"]
        take(tap, lambda: _laid_out(value, site, grids))

    return hook


def _output_hook(tap: str, site: Site, grids: Mapping[str, Grid], take: Take) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        value = output if isinstance(output, Tensor) else output[site.element]
        take(tap, lambda: _laid_out(value, site, grids))

    return hook


def _laid_out(value: Tensor, site: Site, grids: Mapping[str, Grid]) -> Tensor:
    """A detached copy [B, C, h, w] of an activation [B, C, h, w] or [B, tokens, C]."""
    if site.grid is not None:
        height, width = grids[site.grid]
        # The image's tokens are the last where the prompt's are in one sequence with them.
        value = value[:, -height * width :].unflatten(1, (height, width)).movedim(-1, 1)
    if site.packed:
        value = functional.pixel_shuffle(value, 2)
    # A copy, since some networks add adapter residuals to their own activations in place.
    return value.detach().clone(memory_format=torch.contiguous_format)
