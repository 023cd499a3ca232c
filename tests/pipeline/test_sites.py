"""Where taps are in transformers and in DeepFloyd IF's UNet, and that their tokens lie as the latents do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from pipeline.families import flux
from pipeline.recorder import Recorder, config_of
from pipeline.taps import shapes
from schemas.taps import names
from tests import networks

TRANSFORMERS = [name for name in networks.CONFIGS if name != "deepfloyd"]


@torch.no_grad()
def run(name: str, taps: list[str], arguments: dict[str, Any] | None = None) -> dict[str, Tensor]:
    network = networks.network(name)
    arguments = networks.inputs(name) if arguments is None else arguments
    return Recorder(network, taps).run(lambda: network(**arguments))


def changed(before: Tensor, after: Tensor) -> set[tuple[int, int]]:
    """Cells whose values differ."""
    return {(row, column) for row, column in (before != after).any(1)[0].nonzero().tolist()}


@pytest.mark.parametrize("name", networks.CONFIGS)
def test_each_tap_stops_the_network_at_its_place(name: str) -> None:
    """Every name exists and fires, in the named order; maps, known with their last key, are left out of it."""
    network, started = networks.network(name), list[nn.Module]()
    handles = [
        module.register_forward_pre_hook(lambda module, args: started.append(module))
        for module in network.modules()
    ]
    counts = []
    try:
        for tap in names(config_of(network)):
            started.clear()
            run(name, [tap])
            if not tap.endswith("-map"):
                counts.append(len(started))
    finally:
        for handle in handles:
            handle.remove()
    assert counts == sorted(counts)
    assert len(set(counts)) > 0.8 * len(counts)


@pytest.mark.parametrize("name", networks.CONFIGS)
def test_shapes_from_the_config_alone(name: str) -> None:
    network_class, _ = networks.CONFIGS[name]
    network = networks.network(name)
    taps = names(config_of(network))
    want = {tap: tuple(value.shape[1:]) for tap, value in run(name, taps).items()}
    assert shapes(network_class, config_of(network), taps, lambda _: networks.inputs(name)) == want


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_token_lies_where_its_latents_do(name: str) -> None:
    """One latent changes one cell of everything that comes before the first attention."""
    taps = ["dit-in", "dit-after-embed"]
    taps += [f"vit-block0-{site}" for site in ("norm", "self-q", "self-k", "self-v")]
    arguments = networks.inputs(name)
    before = run(name, taps, arguments)
    latents = networks.latents(name)
    assert torch.equal(before["dit-in"], latents)
    latents[0, 1, 3, 10] += 1
    after = run(name, taps, {**arguments, "hidden_states": packed(name, latents)})
    assert changed(before["dit-in"], after["dit-in"]) == {(3, 10)}
    for tap in taps[1:]:
        assert before[tap].shape[2:] == (4, 6)
        assert changed(before[tap], after[tap]) == {(1, 5)}, tap


def test_a_block_with_one_stream_has_the_prompt_split_off() -> None:
    """FLUX's single blocks have the prompt's tokens first, in one sequence with the image's."""
    torch.manual_seed(0)
    config = {**networks.CONFIGS["flux"][1], "num_layers": 0, "num_single_layers": 1}
    made: Any = FluxTransformer2DModel
    network = made(**config).eval()
    taps = [f"vit-block0-{site}" for site in ("norm", "ffn-inner", "self-q", "self-k", "self-v")]
    arguments = networks.inputs("flux")
    other = {**arguments, "hidden_states": arguments["hidden_states"].clone()}
    other["hidden_states"][0, 6 + 5] += 1
    text = {**arguments, "encoder_hidden_states": arguments["encoder_hidden_states"] + 1}
    with torch.no_grad():
        before, after, same = (
            Recorder(network, taps).run(lambda given=given: network(**given))  # type: ignore[misc]
            for given in (arguments, other, text)
        )
    for tap in taps:
        assert changed(before[tap], after[tap]) == {(1, 5)}, tap
        assert torch.equal(before[tap], same[tap]), tap


def packed(name: str, latents: Tensor) -> Tensor:
    return flux.pack(latents) if name == "flux" else latents


@torch.no_grad()
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_last_block_s_output_is_what_the_head_gets(name: str) -> None:
    """Of blocks that return prompt and image, the image; and in rows of the grid."""
    network, got = networks.network(name), list[Tensor]()
    watch = network.norm_out.register_forward_pre_hook(lambda module, args: got.append(args[0]))
    last = [tap for tap in names(config_of(network)) if tap.endswith("-out")][-2]
    try:
        found = run(name, [last, "dit-out"])
    finally:
        watch.remove()
    assert last == f"vit-block{len(blocks(network)) - 1}-out"
    assert torch.equal(found[last], got[0].unflatten(1, (4, 6)).movedim(-1, 1))


def blocks(network: Any) -> list[nn.Module]:
    lists = ("transformer_blocks", "single_transformer_blocks", "blocks")
    return [block for name in lists for block in getattr(network, name, [])]


@torch.no_grad()
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_norm_is_what_self_attention_reads(name: str) -> None:
    network, got = networks.network(name), list[Tensor]()

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        got.append(args[0] if args else kwargs["hidden_states"])

    every: list[Any] = blocks(network)
    attentions = [getattr(block, "attn", None) or block.attn1 for block in every]
    watches = [one.register_forward_pre_hook(keep, with_kwargs=True) for one in attentions]
    taps = [f"vit-block{index}-norm" for index in range(len(every))]
    try:
        found = run(name, [*taps, "dit-out"])
    finally:
        for watch in watches:
            watch.remove()
    for tap, read in zip(taps, got, strict=True):
        assert torch.equal(found[tap], read[:, -24:].unflatten(1, (4, 6)).movedim(-1, 1))


@torch.no_grad()
def test_ffn_inner_of_one_stream_is_behind_the_activation() -> None:
    block = networks.network("flux").single_transformer_blocks[0]
    found = run("flux", ["vit-block2-norm", "vit-block2-ffn-inner"])
    read = found["vit-block2-norm"].movedim(1, -1)
    want = nn.functional.gelu(block.proj_mlp(read), approximate="tanh").movedim(-1, 1)
    assert torch.allclose(found["vit-block2-ffn-inner"], want, atol=1e-5)


@torch.no_grad()
def test_projections_of_an_attention_layer_between_convolutions() -> None:
    """DeepFloyd IF's attention reads a picture [B, C, h, w] and makes tokens of it itself."""
    layer = networks.network("deepfloyd").mid_block.attentions[0]
    found = run("deepfloyd", ["mid-repeat0-res-out", "mid-vit-block0-self-k", "mid-vit-out", "unet-out"])
    normal = layer.group_norm(found["mid-repeat0-res-out"])
    want = nn.functional.conv2d(normal, layer.to_k.weight[:, :, None, None], layer.to_k.bias)
    assert torch.allclose(found["mid-vit-block0-self-k"], want, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_adapters_injected_after_the_recorder_count(name: str) -> None:
    peft = pytest.importorskip("peft")
    network_class, config = networks.CONFIGS[name]
    network = network_class(**config).eval()
    network.load_state_dict(networks.network(name).state_dict())
    taps = ["vit-block1-self-q", "vit-block1-self-map", "dit-after-embed"]
    recorder, arguments = Recorder(network, taps), networks.inputs(name)
    plain = recorder.run(lambda: network(**arguments))
    torch.manual_seed(4)
    network.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    adapted = recorder.run(lambda: network(**arguments))
    network.disable_adapters()
    off = recorder.run(lambda: network(**arguments))
    assert all((adapted[tap] - plain[tap]).abs().max() > 1e-3 for tap in taps[:2])
    assert all(torch.equal(off[tap], plain[tap]) for tap in taps)
    assert sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in network.modules()) == 0


def test_tokens_beside_the_image_are_refused() -> None:
    """FLUX Kontext and others lay a second image's tokens behind the first's."""
    arguments = networks.inputs("flux")
    for name, dim in (("hidden_states", 1), ("img_ids", 0)):
        arguments[name] = torch.cat([arguments[name]] * 2, dim=dim)
    with pytest.raises(ValueError, match="img_ids name a grid of 4 x 6, and hidden_states have 48 tokens"):
        run("flux", ["vit-block0-out"], arguments)
