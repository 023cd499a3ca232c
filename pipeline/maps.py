"""Attention maps, computed beside a network from the queries and keys that its own layers made.

So the network's output does not depend on the maps, and no layer leaves the fused attention path, not even one
whose map is asked for. What the layer does between projection and softmax is done here as well: norms of queries and
keys, rotation by position, masks. Maps are made piece by piece, so that of one that is reduced (over heads, or
pooled) no more than `_WORK_BYTES` exist whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from pipeline.sites import Grid
from schemas.taps import Map

MAX_MAP_BYTES = 2**30
"""Of one attention map of one batch, counted in float32."""
_WORK_BYTES = 2**26


@dataclass
class Scores:
    """What the softmax of one attention layer is made of."""

    query: Tensor
    """[B, heads, h w, d], those of the image."""
    key: Tensor
    """[B, heads, keys, d]; where prompt and image are attended to together, the prompt's come first."""
    scale: float
    mask: Tensor | None = None
    """Added to the scores, [B, heads, 1 or h w, keys]."""

    def softmax(self, image: int, heads: slice, queries: slice) -> Tensor:
        """softmax(scale q k^T + mask) of one image, over all keys: float32 [heads, queries, keys]."""
        query, key = self.query[image, heads, queries].float(), self.key[image, heads].float()
        scores = (query * self.scale) @ key.transpose(-1, -2)
        if self.mask is not None:
            scores = scores + self.mask[image, heads, queries if self.mask.shape[2] > 1 else slice(None)]
        return scores.softmax(dim=-1)


def watch(attention: Any, grid: Callable[[], Grid], done: Callable[[Scores], None]) -> list[RemovableHandle]:
    """Hook an attention layer: `done` is called in each of its calls, as soon as queries and keys are there."""
    parts = [part for part in ("to_q", "to_k", "add_k_proj") if getattr(attention, part, None) is not None]
    seen: dict[str, Any] = {}

    def on_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.clear()
        seen["options"] = kwargs

    def on_part(part: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            seen[part] = output
            if all(part in seen for part in parts):
                height, width = grid()
                scores = _scores(attention, seen, height * width)
                seen.clear()
                done(scores)

        return hook

    return [
        attention.register_forward_pre_hook(on_call, with_kwargs=True),
        *(getattr(attention, part).register_forward_hook(on_part(part)) for part in parts),
    ]


def _scores(attention: Any, seen: dict[str, Any], cells: int) -> Scores:
    def heads(projected: Tensor, norm: str) -> Tensor:
        split = projected.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        normalise = getattr(attention, norm, None)
        return split if normalise is None else normalise(split)

    query = heads(seen["to_q"][:, -cells:], "norm_q")  # behind the prompt's where one sequence holds both
    keys = [heads(seen["add_k_proj"], "norm_added_k")] if "add_k_proj" in seen else []
    keys += [heads(seen["to_k"], "norm_k")] if "to_k" in seen else []
    key = torch.cat(keys, dim=2)
    rotation = seen["options"].get("image_rotary_emb")
    if rotation is not None:
        rotate: Callable[..., Any] = apply_rotary_emb
        query = rotate(query, tuple(part[-cells:] for part in rotation))
        if not getattr(attention, "is_cross_attention", False):  # there, keys are the prompt's
            key = rotate(key, rotation)
    mask = seen["options"].get("attention_mask")
    if mask is not None:
        batch, own = len(key), keys[-1].shape[2]
        mask = attention.prepare_attention_mask(mask, own, batch).unflatten(0, (batch, attention.heads))
    return Scores(query.detach(), key.detach(), getattr(attention, "scale", query.shape[-1] ** -0.5), mask)


def attention_map(
    scores: Scores, keys: Literal["image", "text", "all"], grid: Grid, how: Map, max_bytes: float
) -> Tensor:
    """[B, heads, query, key] in the queries' dtype, reduced as `how` says.

    keys: which of them are kept; the softmax is over all. Pooled, queries and keys are both cells of pool x pool
    tokens of the grid (fewer at its lower and right edges), by rows; a value is the weight that a query of one
    cell gives to all keys of another, averaged over the cell's queries, so that rows still sum to what they did.

    Raises ValueError for a map of more than `max_bytes`.
    """
    batch, heads, queries, _ = scores.query.shape
    every = scores.key.shape[2]
    first, last = {"image": (every - queries, every), "text": (0, every - queries), "all": (0, every)}[keys]
    columns = -(-grid[1] // how.pool)
    cells = -(-grid[0] // how.pool) * columns
    shape = (
        batch,
        1 if how.over_heads else heads,
        queries if how.pool == 1 else cells,
        last - first if how.pool == 1 else cells,
    )
    check_size(how, shape, max_bytes)
    found = torch.empty(shape, dtype=scores.query.dtype, device=scores.query.device)
    # Of a pooled map, whole rows of cells at once; of one that is averaged over heads, all heads.
    step, step_out = (1, 1) if how.pool == 1 else (how.pool * grid[1], columns)
    step_bytes = 4 * step * every
    some_heads = heads if how.over_heads else min(heads, max(1, _WORK_BYTES // step_bytes))
    steps = max(1, _WORK_BYTES // (some_heads * step_bytes))
    for image in range(batch):
        for head in range(0, heads, some_heads):
            of_heads = slice(head, head + some_heads)
            for start in range(0, queries, steps * step):
                weights = scores.softmax(image, of_heads, slice(start, start + steps * step))[..., first:last]
                if how.over_heads:
                    weights = weights.mean(dim=0, keepdim=True)
                if how.pool > 1:
                    weights = _pooled(weights, grid, how.pool)
                place = start // step * step_out
                out = found[image, slice(0, 1) if how.over_heads else of_heads]
                out[:, place : place + weights.shape[1]] = weights
    return found


def _pooled(weights: Tensor, grid: Grid, pool: int) -> Tensor:
    """[heads, rows of the grid, keys] -> [heads, rows of cells, cells]: keys summed, queries averaged."""
    keys = functional.avg_pool2d(
        weights.unflatten(2, grid), pool, ceil_mode=True, divisor_override=1
    ).flatten(2)
    queries = keys.transpose(1, 2).unflatten(2, (-1, grid[1]))
    return functional.avg_pool2d(queries, pool, ceil_mode=True).flatten(2).transpose(1, 2)


def check_size(how: Map, shape: tuple[int, int, int, int], max_bytes: float) -> None:
    """Raise ValueError for a map [B, heads, query, key] of more than `max_bytes`, with the pooled one that is less."""
    batch, heads, queries, keys = shape
    size = 4 * batch * heads * queries * keys
    if size <= max_bytes:
        return
    advice = "take smaller images, fewer at once, or the map of a level with a lower resolution"
    if not how.site.endswith("-cross-map"):
        pool = how.pool
        while size * (how.pool / pool) ** 4 > max_bytes:
            pool *= 2
        advice += f", or the pooled map {how.site}-pooled{pool}"
    raise ValueError(
        f"tap {how.site}: {batch} images x {heads} heads x {queries} x {keys} tokens in float32 are "
        f"{size / 2**30:.2f} GiB, more than the {max_bytes / 2**30:.2f} GiB allowed for one map; {advice}"
    )
