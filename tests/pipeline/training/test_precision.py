from __future__ import annotations

import pytest
import torch

from pipeline.training import precision

CPU = torch.device("cpu")


def test_on_a_cpu_all_numbers_are_the_generators() -> None:
    one, other = (torch.Generator().manual_seed(3) for _ in range(2))
    drawn = precision.normal(torch.Size([2, 3]), one, CPU)
    assert torch.equal(drawn, torch.randn(2, 3, generator=other))


@pytest.mark.parametrize(
    ("capability", "expected"),
    [("AVX512", torch.bfloat16), ("AVX2", torch.float32), ("DEFAULT", torch.float32)],
)
def test_bfloat16_only_where_it_is_fast(
    capability: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert precision.fast_dtype(CPU) == expected
    with precision.autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_by_the_generator_too() -> None:
    device = torch.device("cuda")
    one, same = (
        precision.normal(torch.Size([4]), torch.Generator().manual_seed(3), device) for _ in range(2)
    )
    assert torch.equal(one, same)
