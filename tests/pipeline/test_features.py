"""Features against a plain diffusers loop, what groups share, and that a row depends on nothing but its sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from pipeline import embedded, noise
from pipeline.batch import Batch
from pipeline.features import Engine, Features, pack
from tests.engines import TAPS, group, make_batch, make_engine, make_spec

KEYS = ["a", "b", "c", "d"]


def rows(features: Features, slot: int) -> dict[tuple[str, str], bytes]:
    """All that is stored of one slot."""
    maps = {("map " + one, tap): values[slot].tobytes() for (one, tap), values in features.maps.items()}
    return maps | {
        ("pooled " + g, tap): values[slot].tobytes() for (g, tap), values in features.pooled.items()
    }


def plain_loop(prompts: list[str], *, t: int, seed: int, group_seed: int) -> dict[str, Tensor]:
    """What the reference does, with stock diffusers and forward hooks, on `make_batch(KEYS)`."""
    unet: Any = diffusers.UNet2DConditionModel.from_pretrained(embedded.BACKBONE, subfolder="unet").eval()
    vae: Any = diffusers.AutoencoderKL.from_pretrained(embedded.BACKBONE, subfolder="vae").eval()
    text: Any = CLIPTextModel.from_pretrained(embedded.BACKBONE, subfolder="text_encoder").float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(embedded.BACKBONE, subfolder="tokenizer")
    scheduler = diffusers.PNDMScheduler.from_pretrained(embedded.BACKBONE, subfolder="scheduler")
    scheduler.set_timesteps(1000)
    timestep = scheduler.timesteps[1000 - t]
    taken: dict[str, Tensor] = {}
    unet.down_blocks[0].resnets[0].register_forward_hook(lambda *call: taken.update({TAPS[0]: call[-1]}))
    cross = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    cross.to_q.register_forward_hook(lambda *call: taken.update({TAPS[1]: call[-1].transpose(1, 2)}))
    unet.up_blocks[1].upsamplers[0].register_forward_hook(lambda *call: taken.update({TAPS[2]: call[-1]}))

    channels = vae.config.latent_channels

    def draw(purpose: noise.Purpose) -> Tensor:
        key = {"seed": seed, "group_seed": group_seed, "shard": "a.tar"}
        return torch.tensor(
            np.stack([noise.normal((channels, 8, 8), **key, purpose=purpose, key=name) for name in KEYS])  # type: ignore[arg-type]
        )

    with torch.no_grad():
        tokens = tokenizer(prompts, padding="max_length", max_length=40, truncation=True, return_tensors="pt")
        embeddings = text(tokens.input_ids)[0]
        posterior = vae.encode(torch.from_numpy(make_batch(KEYS).pixels).float() / 127.5 - 1).latent_dist
        latents = (posterior.mean + posterior.std * draw("posterior")) * vae.config.scaling_factor
        noisy = scheduler.add_noise(latents, draw("noise"), timestep.expand(len(KEYS)))
        unet(noisy, timestep, encoder_hidden_states=embeddings)
    return taken


@pytest.mark.parametrize("prompt", ["a red bird", "a photo: {caption}"])
def test_parity_with_a_plain_loop(prompt: str) -> None:
    spec = make_spec(
        group(prompt=prompt, t=300, seed=5, taps=[{"name": tap, "dtype": "float32"} for tap in TAPS]), seed=9
    )
    features = make_engine(spec).run(make_batch(KEYS))
    prompts = [prompt.replace("{caption}", f"a picture of {key}") for key in KEYS]
    expected = plain_loop(prompts, t=300, seed=9, group_seed=5)
    for tap, activation in expected.items():
        stored = torch.tensor(features.maps["plain", tap]).reshape(activation.shape)
        assert float((stored - activation).norm() / activation.norm()) < 5e-6
        mean = activation.reshape(*activation.shape[:2], -1).mean(2)
        assert float((torch.tensor(features.pooled["plain", tap]) - mean).norm() / mean.norm()) < 5e-6
    assert features.reasons == {"plain": [None] * 4}


CALLS = {
    "only taps differ": (
        [group("a"), group("b", taps=TAPS[1])],
        {"image": 1, "text": 1, "noisy": 1, "network": 1},
    ),
    "prompts differ": (
        [group("a"), group("b", prompt="a cat")],
        {"image": 1, "latents": 1, "text": 2, "noisy": 1, "network": 2},
    ),
    "seeds differ": (
        [group("a"), group("b", seed=1)],
        {"image": 1, "latents": 2, "text": 1, "noisy": 2, "network": 2},
    ),
    "times differ": (
        [group("a"), group("b", t=100)],
        {"image": 1, "latents": 1, "text": 1, "noisy": 2, "network": 2},
    ),
    "a time in two counts": ([group("a", t=50), group("b", timestep=51)], {"noisy": 1, "network": 1}),
    "captions twice": (
        [group("a", prompt="{caption}"), group("b", prompt="{caption}", t=100)],
        {"text": 1, "noisy": 2, "network": 2},
    ),
}


@pytest.mark.parametrize(("groups", "calls"), CALLS.values(), ids=CALLS)
def test_what_groups_share_is_computed_once(groups: list[dict[str, Any]], calls: dict[str, int]) -> None:
    """Real calls of the networks are counted, not only the engine's own count."""
    engine = make_engine(make_spec(*groups))
    backbone = engine.backbone
    made = {"image": 0, "network": 0}
    watched = {"image": backbone.vae.encoder, "network": backbone.network.conv_in}

    def count(kind: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            made[kind] += 1

        return hook

    handles = [module.register_forward_pre_hook(count(kind)) for kind, module in watched.items()]
    try:
        engine.run(make_batch(KEYS))
    finally:
        for handle in handles:
            handle.remove()
    assert {kind: engine.calls[kind] for kind in calls} == calls
    assert made == {kind: engine.calls[kind] for kind in made}


def test_a_fixed_prompt_is_encoded_once_for_all_batches() -> None:
    """The count went up with every batch, so a benchmark saw encodings that were never made."""
    engine = make_engine(make_spec(group(), group("caption", prompt="{caption}")))
    for _ in range(3):
        engine.run(make_batch(KEYS))
    assert (engine.calls["text"], engine.calls["image"], engine.calls["network"]) == (1 + 3, 3, 6)


def only(engine: Engine, group: str, batch: Batch) -> dict[str, bytes]:
    return {tap: values.tobytes() for (name, tap), values in engine.run(batch).maps.items() if name == group}


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"t": 51}, {"prompt": "a cat"}, {"prompt": "{caption}"}, {"prompt": "a {caption}"}],
)
def test_sharing_is_keyed_by_all_that_matters(changed: dict[str, Any]) -> None:
    """A group has the same values beside one that is nearly the same as by itself, whichever comes first."""
    plain, other = group(), group("other", **changed)
    batch = make_batch(KEYS)
    alone = {one["name"]: only(make_engine(make_spec(one)), one["name"], batch) for one in (plain, other)}
    assert alone["plain"][TAPS[-1]] != alone["other"][TAPS[-1]]
    for groups in ([plain, other], [other, plain]):
        engine = make_engine(make_spec(*groups))
        assert {one["name"]: only(engine, one["name"], batch) for one in groups} == alone


def test_nothing_is_kept_from_batch_to_batch() -> None:
    """Captions, pixels and noise of the last batch must not come back in this one."""
    engine = make_engine(make_spec(group(prompt="{caption}")))
    first, second = make_batch(KEYS), make_batch(["e", "f", "g", "h"])
    before = only(engine, "plain", first)
    assert only(engine, "plain", second) != before
    assert only(engine, "plain", first) == before


def test_the_sample_decides_not_its_pixels_alone() -> None:
    """The same picture under another key or in another shard has other noise."""
    engine = make_engine(make_spec())
    batch = make_batch(["a", "b", None, None])
    batch.pixels[1] = batch.pixels[0]
    assert rows(features := engine.run(batch), 0) != rows(features, 1)
    other = make_batch(["a", None, None, None], shard="b.tar")
    assert rows(engine.run(other), 0) != rows(features, 0)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(make_spec(group(), group("caption", prompt="{caption}", seed=1, taps=TAPS[-1:])))


@pytest.fixture(scope="module")
def undisturbed(engine: Engine) -> dict[str, dict[tuple[str, str], bytes]]:
    """Each key's row, computed with padding beside it and nothing else."""
    return {key: rows(engine.run(make_batch([key, None, None, None])), 0) for key in "abcdef"}


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_row_depends_on_its_sample_alone(
    engine: Engine, undisturbed: dict[str, dict[tuple[str, str], bytes]], data: st.DataObject
) -> None:
    """Byte for byte at the planned batch size: alone, in a full batch, in any order, slot and company."""
    keys = data.draw(st.permutations([*"abcdef", *[None] * 4]))[:4]
    batch = make_batch(keys)
    for slot in range(4):
        if keys[slot] is None and data.draw(st.booleans()):
            batch.pixels[slot] = data.draw(st.integers(0, 255))
    features = engine.run(batch)
    for slot, key in enumerate(keys):
        if key is not None:
            assert rows(features, slot) == undisturbed[key]


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
def test_with_more_threads_a_row_depends_on_its_slot_too(
    engine: Engine, undisturbed: dict[str, dict[tuple[str, str], bytes]]
) -> None:
    """Kernels cut a batch into a piece for each thread. A job keeps slots, so that its rows are still the same,
    byte for byte, whatever is beside them; those of other slots and numbers of threads differ by rounding alone."""
    alone = engine.run(make_batch([None, None, None, "a"]))
    for others in ("bcd", "efb", "ddd"):
        assert rows(engine.run(make_batch([*others, "a"])), 3) == rows(alone, 3)
    for (name, tap), values in alone.maps.items():
        one_thread = np.frombuffer(undisturbed["a"]["map " + name, tap], np.float16).astype(np.float64)
        difference = values[3].astype(np.float64).ravel() - one_thread
        assert np.linalg.norm(difference) < 1e-4 * np.linalg.norm(one_thread)


def test_a_missing_caption_fails_its_group_alone() -> None:
    engine = make_engine(make_spec(group(), group("caption", prompt="{caption}")))
    whole, batch = engine.run(make_batch(KEYS)), make_batch(["a", "b", "c", None])
    batch.texts["caption"][:2] = None, None
    batch.text_reasons["caption"][0] = "undecodable-caption"
    features = engine.run(batch)
    assert features.reasons == {
        "plain": [None] * 4,
        "caption": ["undecodable-caption", "no-caption", None, None],
    }
    assert rows(features, 2) == rows(whole, 2)
    assert all(
        features.maps["plain", tap][0].tobytes() == whole.maps["plain", tap][0].tobytes() for tap in TAPS
    )


def test_a_prompt_is_a_template_not_a_format() -> None:
    """Braces in a caption, or a placeholder in it, are text."""
    engine = make_engine(make_spec(group(prompt="{caption}")))
    batch = make_batch(KEYS)
    batch.texts["caption"][0] = "{0} {caption} {x"
    assert engine.run(batch).reasons == {"plain": [None] * 4}


class TestPack:
    def test_overflow_is_noticed_after_the_cast(self) -> None:
        """65504 is the largest float16; what is below 65520 rounds down to it, what is not becomes infinite."""
        activation = torch.zeros(4, 2, 3, 3)
        activation[0, 1, 2, 2], activation[1, 0, 0, 0] = 65504, 65519.9
        activation[2, 1, 1, 1], activation[3, 1, 1, 1] = 65520, -1e30
        stored, _, reasons = pack(activation, "float16")
        assert stored.dtype == np.float16 and stored.shape == (4, 2, 3, 3)
        assert reasons == [None, None, "float16-overflow", "float16-overflow"]
        assert stored[1].max() == 65504

    def test_float32_keeps_it(self) -> None:
        activation = torch.full((1, 2, 3, 3), 1e30)
        stored, pooled, reasons = pack(activation, "float32")
        assert reasons == [None] and stored.dtype == np.float32
        assert np.array_equal(stored, activation) and np.allclose(pooled, 1e30)

    def test_pooled_vectors_are_means_before_the_cast(self) -> None:
        _, pooled, _ = pack(torch.full((1, 2, 8, 8), 1.0001), "float16")
        assert abs(pooled - 1.0001).max() < 1e-6

    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_what_the_network_broke(self, dtype: str, value: float) -> None:
        activation = torch.zeros(3, 2, 3, 3)
        activation[1, 0, 0, 1] = value
        assert pack(activation, dtype)[2] == [None, "non-finite", None]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_networks(self, dtype: torch.dtype) -> None:
        """numpy has no bfloat16, and a mean summed up in half precision is far off."""
        activation = torch.full((1, 2, 64, 64), 1.5, dtype=dtype)
        stored, pooled, reasons = pack(activation, "float16")
        assert reasons == [None] and (stored == 1.5).all()
        assert pooled.dtype == np.float32 and (pooled == 1.5).all()

    def test_attention_maps(self) -> None:
        stored, pooled, reasons = pack(torch.full((2, 4, 9, 40), 1 / 40), "float16")
        assert stored.shape == (2, 4, 9, 40) and pooled.shape == (2, 4) and reasons == [None, None]


def test_an_overflow_fails_its_group_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And all of the group, but no other slot."""
    engine = make_engine(make_spec(group(), group("safe", taps=[{"name": TAPS[0], "dtype": "float32"}])))
    real = engine.backbone.predict

    def predict(inputs: dict[str, Any]) -> Tensor:
        noisy = inputs["sample"].clone()
        noisy[2] *= 1e6
        return real(inputs | {"sample": noisy})

    monkeypatch.setattr(engine.backbone, "predict", predict)
    features = engine.run(make_batch(KEYS))
    assert features.reasons == {"plain": [None, None, "float16-overflow", None], "safe": [None] * 4}
