"""Does a picture grow coarse to fine? Previews against the finished picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nestar.evaluation import metrics
from nestar.model import NestAR
from nestar.nesting import Nesting
from nestar.sampler import PatchDone, SolverSettings, sample
from nestar.tokenizer import Tokenizer


@torch.inference_mode()
def preview_psnr(
    model: NestAR, tokenizer: Tokenizer, class_ids_B: Tensor, seeds: Sequence[int], settings: SolverSettings
) -> Tensor:
    """PSNR in dB of the preview after each module but the last, against the finished picture, (B, M-1)."""
    nesting = model.config.nesting
    ends = {scale.tokens for scale in nesting.scales}
    stages: list[Tensor] = []
    for event in sample(model, class_ids_B, seeds, settings):
        if isinstance(event, PatchDone) and event.known in ends:
            stages.append(tokenizer.preview(event.sequence_BNC, nesting, event.known))
    return _against_the_last(stages)


@torch.inference_mode()
def psnr_of_tokens(tokens_BNC: Tensor, tokenizer: Tokenizer, nesting: Nesting) -> Tensor:
    """The same of whole sequences that stand already, such as drawn pictures': what the decoder guesses from
    their beginnings, whoever made them."""
    return _against_the_last(
        [tokenizer.preview(tokens_BNC, nesting, scale.tokens) for scale in nesting.scales]
    )


def _against_the_last(stages: Sequence[Tensor]) -> Tensor:
    """PSNR in dB of each stage but the last against that, (B, M-1)."""
    *previews, final = stages
    empty = torch.empty(len(final), 0)
    return torch.stack([metrics.psnr(preview, final).cpu() for preview in previews], 1) if previews else empty


def coarse_to_fine(psnr_BM: Tensor) -> dict[str, Any] | None:
    """Summary of `preview_psnr`; None where fewer than two previews precede the picture.

    Returns:
        `psnr`: mean after each module but the last; `rising`: share of samples in which it rises with every
        module, `rising_at`: with the second, the third, ...; `samples`.
    """
    if psnr_BM.shape[1] < 2:
        return None
    rises_BM = psnr_BM.diff(dim=1) > 0
    return {
        "psnr": [round(value, 2) for value in psnr_BM.mean(0).tolist()],
        "rising": rises_BM.all(1).double().mean().item(),
        "rising_at": rises_BM.double().mean(0).tolist(),
        "samples": len(psnr_BM),
    }
