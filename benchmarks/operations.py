"""Operations of matrix products that a picture costs, counted from a configuration's shape.

A multiplication and an addition are two operations. Norms, activations and the tokenizer are left out, as
usual; on small nets they still take time, which is what a low share of the matrix rate says.
"""

from __future__ import annotations

from nestar.model import NestARConfig
from nestar.sampler import SolverSettings
from nestar.transformer import TIME_FREQUENCIES, mlp_width


def pass_operations(config: NestARConfig, depth: int, tokens: int, context: int) -> int:
    """One row's pass of embedded `tokens` through a module of `depth` blocks, `context` cached tokens in
    sight."""
    dim, hidden = config.dim, mlp_width(config.dim)
    weights = 3 * dim * dim + dim * dim + 3 * dim * hidden  # qkv, out, SwiGLU's three
    block = 2 * tokens * weights + 4 * tokens * (context + tokens) * dim  # scores, and values by weights
    return depth * block + 2 * tokens * dim * config.channels  # and the head


def picture_operations(config: NestARConfig, settings: SolverSettings) -> int:
    """What sampling one picture on its own costs, with guidance's second row where `settings` ask for it."""
    calls = settings.calls
    times, cond = len(settings.times), config.cond_dim
    once, each_row = 0, 0
    for scale, depth in zip(config.nesting.scales, config.depths, strict=True):
        once += 2 * times * (TIME_FREQUENCIES + cond) * cond  # a module's time grid, whatever the class
        each_row += 2 * times * cond * 8 * config.dim  # its modulations: six of the blocks, two of the head
        for patch in scale.patches:
            passes = calls * (patch in scale.generated) + (
                patch is not scale.patches[-1]
            )  # solved, remembered
            once += passes * 2 * patch.size * config.dim * config.channels  # embedded with and without class
            each_row += passes * pass_operations(config, depth, patch.size, patch.start)
            if patch.stop == 1:  # a token that sees itself alone needs no scores while it is solved
                each_row -= calls * depth * 4 * config.dim
    return once + each_row * (2 if settings.guided else 1)
