"""Named recipes: `python -m nestar train tokenizer|nesting --preset NAME`, and the family of nestings."""

from __future__ import annotations

from dataclasses import replace

from nestar.nesting import Nesting
from nestar.registry import CONFIGURATIONS
from nestar.training.features import FeaturesConfig
from nestar.training.nesting import NestingTrainConfig
from nestar.training.tokenizer import TokenizerConfig

TOKENIZERS: dict[str, TokenizerConfig] = {
    "tiny-worlds": TokenizerConfig(),
    "tiny-worlds-decoder": TokenizerConfig(
        decoder_only=True, seed=1, optimizer=replace(TokenizerConfig().optimizer, lr=1e-3, muon_lr=3e-3)
    ),
    # Not of the embedded tokenizer: whose first tokens tell of the whole picture.
    "tiny-worlds-nested": TokenizerConfig(nested=True, fill_share=0.4, noise=0.5),
    "smoke": TokenizerConfig(size=64, channels=(16, 16, 32), batch=8, pool=64, held_out=16),
}

_SMOKE = {
    "size": 64,
    "dim": 32,
    "heads": 2,
    "blocks": 4,
    "cond_dim": 16,
    "batch": 8,
    "pool": 64,
    "held_out": 16,
}

NESTINGS: dict[str, NestingTrainConfig] = {
    "tiny-worlds-k4": NestingTrainConfig(),
    # For single modules that are trained on: a step has less of what they know, and there are more steps.
    "tiny-worlds-k4-on": NestingTrainConfig(draw_power=0.25, shared_rows=0.1),
    "tiny-worlds-k2": NestingTrainConfig(nesting=Nesting.nested(8, 8, 2)),
    "tiny-worlds-k8": NestingTrainConfig(nesting=Nesting.nested(8, 8, 8)),
    "tiny-worlds-k4-separate": NestingTrainConfig(coordination=0.0, variant="separate"),
    "tiny-worlds-k4-raster": NestingTrainConfig(nesting=Nesting.nested(8, 8, 4, order="raster")),
    "tiny-worlds-autoregressive": NestingTrainConfig(nesting=Nesting.autoregressive(8, 8)),
    "tiny-worlds-cells": NestingTrainConfig(nesting=Nesting.cells(8, 8, 4)),
    "tiny-worlds-one-shot": NestingTrainConfig(nesting=Nesting.one_shot(8, 8)),
    # For experiments' arms where there is no GPU: a quarter of the weights, three times the images an hour.
    "tiny-worlds-k4-small": NestingTrainConfig(dim=96, heads=3, cond_dim=56, batch=64, pool=19_200),
    "smoke": NestingTrainConfig(nesting=Nesting.nested(4, 4, 4), **_SMOKE),
}
# The paper's shape, on pictures that --data names; the batch is xAR's, the rates are those of Tiny Worlds.
NESTINGS |= {
    name: NestingTrainConfig(
        nesting=config.nesting,
        size=256,
        dim=config.dim,
        heads=config.heads,
        blocks=config.blocks,
        cond_dim=config.cond_dim,
        classes=config.classes,
        batch=2048,
    )
    for name, config in CONFIGURATIONS.items()
}
STEPS: dict[str, int] = dict.fromkeys(CONFIGURATIONS, 250_000)
"""Optimiser steps of a recipe for which no budget is given: some 400 epochs of ImageNet at their batch."""

# Compared at equal size and equal images, in order of need. Lambda acts between modules: the members of one
# module (one-shot, autoregressive, cells) have none, whatever their config says.
FAMILY: tuple[str, ...] = (
    "tiny-worlds-k4",
    "tiny-worlds-one-shot",
    "tiny-worlds-autoregressive",
    "tiny-worlds-k2",
    "tiny-worlds-k8",
    "tiny-worlds-k4-separate",
    "tiny-worlds-k4-raster",
    "tiny-worlds-cells",
)
FEATURES: dict[str, FeaturesConfig] = {
    "tiny-worlds": FeaturesConfig(),
}
