"""Forward hooks on unmodified diffusers modules, and a network that stops after the last tap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from pipeline.maps import MAX_MAP_BYTES, Scores, attention_map, watch
from pipeline.sites import Grid, Site, grid_of, locate
from schemas import taps as vocabulary

Take = Callable[[str, Callable[[], Tensor]], None]
"""Called with a tap that fires and a way to its value."""


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


def config_of(network: Any) -> dict[str, Any]:
    """A network's config, with its class: one that was not loaded from a file lacks that."""
    return {**network.config, "_class_name": type(network).__name__}


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
