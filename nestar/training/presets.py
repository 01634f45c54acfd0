"""Named recipes: `python -m nestar train tokenizer|nesting --preset NAME`."""

from __future__ import annotations

from nestar.nesting import Nesting
from nestar.training.features import FeaturesConfig
from nestar.training.nesting import NestingTrainConfig
from nestar.training.tokenizer import TokenizerConfig

TOKENIZERS: dict[str, TokenizerConfig] = {
    "tiny-worlds": TokenizerConfig(),
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
    "tiny-worlds-k2": NestingTrainConfig(nesting=Nesting.nested(8, 8, 2)),
    "tiny-worlds-k8": NestingTrainConfig(nesting=Nesting.nested(8, 8, 8)),
    "tiny-worlds-k4-raster": NestingTrainConfig(nesting=Nesting.nested(8, 8, 4, order="raster")),
    "tiny-worlds-autoregressive": NestingTrainConfig(nesting=Nesting.autoregressive(8, 8)),
    "tiny-worlds-cells": NestingTrainConfig(nesting=Nesting.cells(8, 8, 4)),
    "tiny-worlds-one-shot": NestingTrainConfig(nesting=Nesting.one_shot(8, 8)),
    "smoke": NestingTrainConfig(nesting=Nesting.nested(4, 4, 4), **_SMOKE),
}
FEATURES: dict[str, FeaturesConfig] = {
    "tiny-worlds": FeaturesConfig(),
}
