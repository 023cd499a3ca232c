"""Single-file checkpoints of the original code bases, made into a diffusers folder once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import safe_open
from torch import nn

from pipeline import checkpoint
from pipeline.backbone import Backbone
from pipeline.cache import cached, staging

_UNET_KEY = "model.diffusion_model."
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


def convert(file: Path, configs: Path, family: type[Backbone]) -> Path:
    """A diffusers folder with the weights of a file and the configs, tokenizers and scheduler of a folder.

    It is kept in the user's cache by the content of both. The weights stay in the file's precision.

    Raises:
        ValueError: a file that does not fit the configs, or that lacks a component.
    """
    parts = [part for part in family.parts() if (configs / part).is_dir()]
    texts = {name: value for name, value in checkpoint.fingerprint(configs, parts).items() if _is_text(name)}
    index = checkpoint.sha256(configs / checkpoint.INDEX)
    folder = cached(json.dumps(["single file", checkpoint.sha256(file), index, texts]))
    if not folder.is_dir():
        with staging(folder) as staged:
            for name in (checkpoint.INDEX, *texts):
                (staged / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(configs / name, staged / name)
            for part, module in _load(file, staged, configs, family).items():
                module.save_pretrained(staged / part, safe_serialization=True)
                # Its own config, not the one that was saved, which names libraries and paths of this machine.
                shutil.copyfile(configs / part / "config.json", staged / part / "config.json")
    return folder


def _load(file: Path, staged: Path, configs: Path, family: type[Backbone]) -> dict[str, Any]:
    """The components of a file, by `from_single_file` of the pipeline's class; no weights are in `staged` yet."""
    kind = getattr(diffusers, checkpoint.pipeline_class(staged))
    if not hasattr(kind, "from_single_file"):
        raise ValueError(
            f"backbone {str(file)!r}: diffusers reads no single files of a {kind.__name__}; convert it to a diffusers"
            " folder with the model's own tools"
        )
    parts = [part for part in family.weighted_parts() if (staged / part).is_dir()]
    listed = json.loads((staged / checkpoint.INDEX).read_text())
    unused = {
        name: None for name in listed if isinstance(listed[name], list) and not (staged / name).is_dir()
    }
    try:
        pipe = kind.from_single_file(
            str(file), config=str(staged), local_files_only=True, torch_dtype=_widest(file), **unused
        )
        modules = {part: getattr(pipe, part) for part in parts}
        for part, module in modules.items():
            _check_complete(part, module)
        _check_used(file, modules)
    except Exception as error:  # whatever the mapping of keys stumbles over
        raise ValueError(
            f"backbone {str(file)!r} does not fit the configs of {str(configs)!r} ({_reason(error)}); give the"
            " diffusers folder of the same architecture as `config`"
        ) from error
    return modules


def _widest(file: Path) -> torch.dtype:
    """The precision that loses nothing: of matrices and kernels, since schedules beside them are always float32."""
    with safe_open(file, "pt") as weights:
        slices = (weights.get_slice(name) for name in weights.keys())  # noqa: SIM118 (not a mapping)
        found = {one.get_dtype() for one in slices if len(one.get_shape()) >= 2}
    return _DTYPES[found.pop()] if len(found) == 1 and found <= _DTYPES.keys() else torch.float32


def _reason(error: Exception) -> str:
    """What diffusers says, without its advice on other calls."""
    if isinstance(error, NotImplementedError):  # it tried to move weights that it never got
        return "weights of a network are missing"
    return str(error).partition("\n")[0].partition(" If you want")[0]


def _check_complete(part: str, module: nn.Module) -> None:
    absent = [name for name, one in module.named_parameters() if one.device.type == "meta"]
    if absent:
        raise ValueError(
            f"{part} has no {absent[0]}" + (f" and {len(absent) - 1} more" if absent[1:] else "")
        )


def _check_used(file: Path, modules: dict[str, Any]) -> None:
    """Configs of a smaller UNet would leave weights out; the original has one tensor for each of diffusers'."""
    with safe_open(file, "pt") as weights:
        given = sum(name.startswith(_UNET_KEY) for name in weights.keys())  # noqa: SIM118
    if "unet" in modules and given != (taken := len(modules["unet"].state_dict())):
        raise ValueError(f"the file's UNet has {given} tensors, that of the configs {taken}")


def _is_text(name: str) -> bool:
    return not name.endswith(".safetensors")
