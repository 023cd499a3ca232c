"""Tiny backbones of every family with random weights, saved as diffusers folders, as a user's own would be.

Built from the families' own config classes. Pictures of 64 px have latents of 8 x 8, but for DeepFloyd IF, whose
network sees the pixels.
"""

from __future__ import annotations

import functools
import string
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

GOLDEN = Path(__file__).parent / "data" / "golden"
_ALPHABET = string.ascii_lowercase + string.digits + string.punctuation
_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_SAVED = tempfile.TemporaryDirectory(prefix="backbones-")


def make(family: str, folder: Path) -> Path:
    """Build a backbone of a family and save it under `folder`, which is returned; `FAMILIES` has the names."""
    with torch.random.fork_rng():
        torch.manual_seed(sum(family.encode()))
        FAMILIES[family]().save_pretrained(folder)
    return folder


@functools.cache
def tiny(family: str) -> Path:
    """A backbone built once for all tests of a session, to be left as it is."""
    return make(family, Path(_SAVED.name) / family)


def _sd1() -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(32),
        tokenizer=_clip_tokenizer(),
        unet=_unet(cross_attention_dim=32, attention_head_dim=2),
        scheduler=diffusers.PNDMScheduler(steps_offset=1, skip_prk_steps=True, **_BETAS),
        **_no_safety_checker(),
    )


def _sd2_v() -> Any:
    """Heads by level, linear projections and v-prediction, as in Stable Diffusion 2.1."""
    pipe = _sd1()
    pipe.register_modules(
        unet=_unet(cross_attention_dim=32, attention_head_dim=[2, 4], use_linear_projection=True),
        scheduler=diffusers.DDIMScheduler(
            steps_offset=1, clip_sample=False, prediction_type="v_prediction", **_BETAS
        ),
    )
    return pipe


def _sdxl(**scheduler: Any) -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025),
        text_encoder=_clip(32),
        text_encoder_2=_clip(24, projection=True),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(pad_token="!"),
        unet=_unet(
            cross_attention_dim=32 + 24,
            attention_head_dim=[2, 4],
            transformer_layers_per_block=[1, 2],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(
            steps_offset=1, timestep_spacing="leading", **_BETAS, **scheduler
        ),
        add_watermarker=False,
    )


def _playground() -> Any:
    """Playground v2: SDXL's pipeline and networks."""
    return _sdxl(interpolation_type="linear", timestep_type="discrete")


def _pixart(sample_size: int, conditions: bool) -> dict[str, Any]:
    t5 = _t5(32)
    return {
        "vae": _vae(scaling_factor=0.13025),
        "text_encoder": t5,
        "tokenizer": _t5_tokenizer(),
        "transformer": diffusers.PixArtTransformer2DModel(
            num_attention_heads=3,
            attention_head_dim=8,
            num_layers=2,
            cross_attention_dim=24,
            caption_channels=32,
            sample_size=sample_size,
            use_additional_conditions=conditions,
        ),
        "scheduler": diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", beta_end=0.02),
    }


def _pixart_alpha() -> Any:
    """At 1024 px, where the network is told the picture's size."""
    return diffusers.PixArtAlphaPipeline(**_pixart(128, True))


def _pixart_sigma() -> Any:
    return diffusers.PixArtSigmaPipeline(**_pixart(32, False))


def _sd3() -> Any:
    return diffusers.StableDiffusion3Pipeline(
        vae=_flow_vae(),
        text_encoder=_clip(16, projection=True),
        text_encoder_2=_clip(24, projection=True),
        text_encoder_3=_t5(64),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(pad_token="!"),
        tokenizer_3=_t5_tokenizer(),
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=64,
            pooled_projection_dim=16 + 24,
            pos_embed_max_size=32,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux() -> Any:
    return diffusers.FluxPipeline(
        vae=_flow_vae(),
        text_encoder=_clip(32),
        text_encoder_2=_t5(24),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_t5_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=64,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def _hunyuan() -> Any:
    bert = transformers.BertConfig(
        vocab_size=len(_ALPHABET) + 40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=96,
    )
    return diffusers.HunyuanDiTPipeline(
        vae=_vae(scaling_factor=0.13025),
        text_encoder=transformers.BertModel(bert).eval(),
        tokenizer=_bert_tokenizer(),
        text_encoder_2=_t5(24),
        tokenizer_2=_t5_tokenizer(),
        transformer=diffusers.HunyuanDiT2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=16,
            num_layers=4,
            cross_attention_dim=32,
            cross_attention_dim_t5=24,
            pooled_projection_dim=16,
        ),
        scheduler=diffusers.DDPMScheduler(prediction_type="v_prediction", **_BETAS),
        **_no_safety_checker(),
    )


def _if() -> Any:
    """DeepFloyd IF's first stage, whose output has a learned variance behind the noise."""
    return diffusers.IFPipeline(
        text_encoder=_t5(32),
        tokenizer=_t5_tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=16,
            in_channels=3,
            out_channels=6,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            norm_num_groups=8,
            attention_head_dim=8,
            cross_attention_dim=32,
            encoder_hid_dim=32,
            encoder_hid_dim_type="text_proj",
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm",
            resnet_time_scale_shift="scale_shift",
            act_fn="gelu",
        ),
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            variance_type="learned_range",
            thresholding=True,
            dynamic_thresholding_ratio=0.95,
            sample_max_value=1.5,
        ),
        watermarker=None,
        **_no_safety_checker(),
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "sd1": _sd1,
    "sd2-v": _sd2_v,
    "sdxl": _sdxl,
    "playground": _playground,
    "pixart-alpha": _pixart_alpha,
    "pixart-sigma": _pixart_sigma,
    "sd3": _sd3,
    "flux": _flux,
    "hunyuan": _hunyuan,
    "if": _if,
}


def _no_safety_checker() -> dict[str, Any]:
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _unet(**config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        **config,
    )


def _vae(**config: Any) -> AutoencoderKL:
    """Reduces pictures by 8, to 4 channels unless `config` says otherwise."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=64,
        **{"latent_channels": 4, **config},
    )


def _flow_vae() -> AutoencoderKL:
    """Sixteen channels, which are shifted before they are scaled."""
    return _vae(
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _clip(width: int, *, projection: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=313,
        hidden_size=width,
        intermediate_size=32,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def _clip_tokenizer(**options: Any) -> Any:
    return CLIPTokenizer.from_pretrained(GOLDEN / "sd15-tiny" / "tokenizer", **options)


def _t5(width: int) -> Any:
    config = transformers.T5Config(
        vocab_size=len(_ALPHABET) + 8,
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5EncoderModel(config).eval()


def _t5_tokenizer() -> Any:
    """A token for each letter."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary = special + [(letter, -3.0) for letter in _ALPHABET]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def _bert_tokenizer() -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", *_ALPHABET[1:]]
    words += [f"##{letter}" for letter in string.ascii_lowercase]
    vocabulary = {word: place for place, word in enumerate(words)}
    return transformers.BertTokenizer(vocab=vocabulary, model_max_length=77)
