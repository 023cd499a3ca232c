"""Pictures to captions, with an image-to-text model of transformers.

`Preparation` is the model's own processor: one picture in, the inputs of one row out; it needs no weights.
`Captioner` has the weights too, and takes a batch of rows. Both run offline on a folder that is on this machine,
read safetensors only and execute no code from it. Image processors are the ones built on PIL, whether or not
torchvision is installed, so that the same picture gives the same inputs everywhere.
"""

from __future__ import annotations

import copy
import importlib.metadata
import platform
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from pipeline import checkpoint, sources
from pipeline.bad import BadSample
from schemas import __version__
from schemas.captions import CaptionsManifest, CaptionSpec

METHOD = 1
"""Version of what this code does to a picture and to a model's words; raised when a caption changes."""

Inputs = dict[str, Tensor]
"""A model's inputs for one picture, by the names its processor gives them; their first axis is 1, or has the parts
that a picture is cut into."""

_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "pillow", "safetensors")
_UNLOADABLE = (OSError, ValueError, KeyError, ImportError, AttributeError, RuntimeError, TypeError)
"""What transformers raises for folders that it cannot make a model of."""


def locate(spec: CaptionSpec) -> Path:
    """The model's folder on this machine, fetched first where its source is a URL or a hub id.

    Raises:
        ValueError: no such folder, a hub id without a revision, weights that are missing or only there as pickle.
    """
    return sources.component(spec.model.source, spec.model.revision, subject="model")


def make_manifest(spec: CaptionSpec, folder: Path) -> CaptionsManifest:
    """What captions made by this spec, with the model in `folder`, are."""
    return CaptionsManifest(
        gatehouse=__version__,
        identity={
            "method": METHOD,
            "model": {
                "files": checkpoint.fingerprint_part(folder),
                "dtype": spec.model.dtype,
                "batch_size": spec.model.batch_size,
            },
            "image": {"size": spec.image_size, "fields": spec.input.image_fields},
            "prompt": spec.prompt,
            "max_new_tokens": spec.max_new_tokens,
            "num_beams": spec.num_beams,
        },
        spec=spec.model_dump(mode="json"),
        libraries={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
    )


class Preparation:
    """Turns pictures into a model's inputs; for many threads at once.

    Args:
        folder: that `locate` returned.
        spec: whose prompt and image size every picture gets.

    Raises:
        ValueError: no processor there, one that needs a prompt, or one that gives pictures inputs of different shapes,
            which batches cannot hold.
    """

    def __init__(self, folder: Path, spec: CaptionSpec) -> None:
        self._spec = spec
        self._subject = f"model {spec.model.source!r}"
        self._processor, self.tokenizer = _processor(folder, self._subject)
        self._own = threading.local()
        self._shapes: dict[str, torch.Size] | None = None
        """Of every picture's inputs, where batches hold more than one."""
        if getattr(self._processor, "chat_template", None) and spec.prompt is None:
            raise ValueError(
                f"{self._subject} answers to chats, so it must be asked; set prompt, for instance to"
                " 'Describe the image in one sentence.'"
            )
        self._check()

    def __call__(self, picture: Image.Image) -> Inputs:
        """The inputs of an RGB picture.

        Raises:
            BadSample: the processor cannot take it, because of its proportions perhaps.
        """
        # Tokenizers are no longer safe to share once padding or truncation is set, which some processors do.
        if not hasattr(self._own, "processor"):
            self._own.processor = copy.deepcopy(self._processor)
        if self._spec.image_size is not None:
            height, width = self._spec.image_size
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        size = f"{picture.width} x {picture.height} pixels"
        try:
            inputs = self._inputs(self._own.processor, picture)
        except _UNLOADABLE as error:
            raise BadSample("unprocessable-image", f"{size}: {error}") from error
        if self._shapes and self._shapes != {name: value.shape for name, value in inputs.items()}:
            raise BadSample("unprocessable-image", f"{size}: no inputs of one shape; set image_size")
        return inputs

    def _inputs(self, processor: Any, picture: Image.Image) -> Inputs:
        prompt = self._spec.prompt
        if getattr(processor, "chat_template", None):
            content = [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]
            found = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        elif isinstance(processor, transformers.ProcessorMixin) and prompt is not None:
            found = processor(images=picture, text=prompt, return_tensors="pt")
        else:
            found = processor(images=picture, return_tensors="pt")
            if prompt is not None:  # an encoder of images alone: the prompt is how its decoder begins
                words = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
                found["decoder_input_ids"] = words.input_ids
        return dict(found)

    def _check(self) -> None:
        """Try two pictures of other proportions."""
        try:
            tall, wide = (self(Image.new("RGB", size, "grey")) for size in ((96, 128), (192, 96)))
        except BadSample as error:
            cure = "" if self._spec.prompt else "; it may need a prompt"
            raise ValueError(
                f"{self._subject}: its processor takes no picture: {error.detail}{cure}"
            ) from error
        if self._spec.model.batch_size == 1:
            return
        if other := [name for name in tall if tall[name].shape != wide[name].shape]:
            raise ValueError(
                f"{self._subject} gives pictures of other proportions inputs of other shapes ({other[0]}:"
                f" {list(tall[other[0]].shape)}, {list(wide[other[0]].shape)}), and a batch must have one; set"
                " image_size, or model.batch_size: 1"
            )
        self._shapes = {name: value.shape for name, value in tall.items()}


class Captioner:
    """A model on its device, loaded once.

    Args:
        folder: that `locate` returned.
        spec: of the job.
        device: cpu or cuda.

    Raises:
        ValueError: no image-to-text model that transformers knows, or one that cannot take what its processor gives.
    """

    def __init__(self, folder: Path, spec: CaptionSpec, device: str) -> None:
        if device == "cpu":
            torch.set_num_threads(spec.cluster.cpus_per_actor)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        self.spec = spec
        self.prepare = Preparation(folder, spec)
        self._model = _load(folder, spec).to(device)
        self._dtype = self._model.dtype
        self._device = torch.device(device)
        self.parameters = sum(one.numel() for one in self._model.parameters())
        try:
            self._generate([self.prepare(Image.new("RGB", (128, 96), "grey"))], max_new_tokens=1)
        except (ValueError, TypeError) as error:
            cure = "" if spec.prompt else "; it may need a prompt"
            raise ValueError(
                f"model {spec.model.source!r}: it does not take what its processor gives: {error}{cure}"
            ) from error

    def caption(self, rows: Sequence[Inputs | None]) -> list[str | None]:
        """A batch of `batch_size` slots to captions of one line each; None for empty slots.

        Every forward pass has all slots, empty ones repeating a neighbour, so that a row's caption depends on its
        picture and its slot only.
        """
        present = next((one for one in rows if one is not None), None)
        if present is None:
            return [None] * len(rows)
        texts = self._generate([one or present for one in rows], self.spec.max_new_tokens)
        return [None if one is None else text for one, text in zip(rows, texts, strict=True)]

    @torch.inference_mode()
    def _generate(self, rows: Sequence[Inputs], max_new_tokens: int) -> list[str]:
        batch = {name: self._placed(torch.cat([one[name] for one in rows])) for name in rows[0]}
        if "input_ids" in batch and self._model.config.model_type == "git":
            # GIT goes on where its prompt ends; its processor closes the prompt, which the model never saw.
            batch = {name: ids[:, :-1] if ids.ndim == 2 else ids for name, ids in batch.items()}
        output = self._model.generate(
            **batch, max_new_tokens=max_new_tokens, do_sample=False, num_beams=self.spec.num_beams
        )
        texts = self._words(output)
        given = batch.get("decoder_input_ids")
        if given is None and not self._model.config.is_encoder_decoder:
            given = batch.get("input_ids")
        prompts = [""] * len(texts) if given is None else self._words(given)
        return [text.removeprefix(prompt).strip() for text, prompt in zip(texts, prompts, strict=True)]

    def _words(self, ids: Tensor) -> list[str]:
        texts = self.prepare.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def _placed(self, value: Tensor) -> Tensor:
        return value.to(self._device, self._dtype if value.is_floating_point() else None)


def _processor(folder: Path, subject: str) -> tuple[Any, Any]:
    """What prepares pictures, and the tokenizer."""
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        images = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
        processor = transformers.AutoProcessor.from_pretrained(folder, **options)
        if isinstance(processor, transformers.ProcessorMixin):
            processor.image_processor = images
            return processor, processor.tokenizer
        return images, transformers.AutoTokenizer.from_pretrained(folder, **options)
    except _UNLOADABLE as error:
        raise ValueError(
            f"{subject}: its processor cannot be loaded: {_in_short(error)}; the folder must hold what transformers"
            " saved beside the weights (processor or preprocessor config, tokenizer)"
        ) from error


def _load(folder: Path, spec: CaptionSpec) -> Any:
    try:
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=getattr(torch, spec.model.dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except _UNLOADABLE as error:
        raise ValueError(
            f"model {spec.model.source!r} cannot be loaded as an image-to-text model: {_in_short(error)}"
        ) from error
    return model.eval().requires_grad_(False)


def _in_short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
