"""Flags of `train`: what they are, and the recipe and budget that they come to."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestar.cli.common import check_batch, numbers
from nestar.files import CACHE
from nestar.nesting import ORDERS, ORDERS_OF_KIND, Nesting
from nestar.settings import SettingsError

if TYPE_CHECKING:
    from nestar.training.loop import Budget

MANY_FLAGS = ("accumulate", "checkpoint_activations", "precision")
"""Flags of `train` for nestings alone, by their names here."""
SIZES = ("dim", "heads", "blocks")
SHAPE = (*SIZES, "variant")
"""Those that change a nesting's shape or name, but for its k and order."""
VARIANT = re.compile("[A-Za-z0-9_-]{1,40}")
"""What a variant may be called: folders are."""
GUIDED = ("autoguidance", "away_from")
"""Those of `train nesting` that guide it by earlier weights."""
MAX_TRAINING_SEED = 2**31 - 1
"""Steps' and modules' seeds are made of it by multiplication."""
MAX_POOL_FROM = 2**31 - 1
"""Far below the number at which the stream of held-out pictures begins."""
FAMILY_IMAGES = 1_000_000


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=("tokenizer", "nesting", "features", "family"),
        help="the tokenizer; the modules of one nesting behind it; the feature network that measures; or the "
        "family: nestings of one size and equal images, one after another",
    )
    parser.add_argument("--preset", help="a named recipe (default: tiny-worlds, tiny-worlds-k4)")
    parser.add_argument(
        "--minutes",
        type=float,
        help="wall-clock budget of training, which the learning rate follows; of a family: when the whole "
        "queue is interrupted (default: never)",
    )
    parser.add_argument(
        "--steps", type=int, help="budget in optimiser steps instead (default of imagenet256 presets: 250000)"
    )
    parser.add_argument(
        "--images", type=int, help=f"of a family: images each member sees (default: {FAMILY_IMAGES})"
    )
    parser.add_argument(
        "--members", help="of a family: presets in order of training, parted by commas (default: all)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--folder",
        type=Path,
        help="the run's folder; an unfinished run there is resumed (default: in runs/)",
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="for nestings: tokenizer folder (default: the embedded one)"
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="where pools of images and latents lie")
    parser.add_argument(
        "--init", type=Path, help="start a new run from these weights (a tokenizer's or nesting's folder)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="for nestings: a folder of pictures, a folder per class, with or without train/ and val/ above "
        "(default: Tiny Worlds)",
    )
    parser.add_argument(
        "--batch", type=int, help="rows per step, of all processes together, in place of the preset's"
    )
    parser.add_argument(
        "--accumulate",
        type=int,
        help="for nestings: parts that each process runs its rows of a step in, one after another, which "
        "takes as much less memory (default: 1)",
    )
    parser.add_argument(
        "--checkpoint-activations",
        action="store_true",
        default=None,
        help="for nestings: run each block again in the backward pass, which takes far less memory",
    )
    parser.add_argument(
        "--precision",
        help="for nestings, of matrix products: auto, bf16 or float32 (default: auto, bf16 where the device "
        "multiplies it itself)",
    )
    parser.add_argument(
        "--pool",
        type=int,
        help="pictures drawn before the first step, in place of the preset's: fewer begin sooner",
    )
    parser.add_argument(
        "--pool-from",
        type=int,
        help="for nestings: number of the pool's first picture of Tiny Worlds; those that weights to begin "
        "with (--init) have seen lie before it (default: 0)",
    )
    parser.add_argument("--k", type=int, help="for nestings: nesting factor, on the preset's grid")
    orders = " or ".join(ORDERS_OF_KIND["nested"])
    parser.add_argument("--order", help=f"for nestings: order of tokens, {orders}")
    parser.add_argument("--dim", type=int, help="for nestings: width, in place of the preset's")
    parser.add_argument("--heads", type=int, help="for nestings: attention heads, which divide the width")
    parser.add_argument("--blocks", type=int, help="for nestings: blocks of all modules together")
    parser.add_argument(
        "--variant", help="for nestings: tells apart trainings of one nesting; its folder is NESTING.VARIANT"
    )
    parser.add_argument("--coordination", type=float, help="lambda, in place of the preset's")
    parser.add_argument(
        "--modules",
        type=numbers,
        help="for nestings, with --init: numbers of the scaled modules to train, parted by commas; the "
        "others stay as they are (default: all)",
    )
    parser.add_argument(
        "--split",
        type=_split,
        help="for nestings: blocks of each scaled module, parted by commas, in place of an even split; with "
        "--init a trained module may have another number than there (default: the preset's)",
    )
    parser.add_argument(
        "--autoguidance",
        type=float,
        help="for nestings, with --init and --away-from: a; in place of the data's velocities modules learn "
        "v + a (v - v'), v being theirs at the start and v' theirs earlier",
    )
    parser.add_argument("--away-from", type=Path, help="the folder of the earlier, less trained weights")
    parser.add_argument("--seed", type=int, help="in place of the preset's")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the modules with torch.compile, which needs a C compiler (default: on CUDA, where "
        "small kernels would wait for their launch)",
    )


def _split(text: str) -> tuple[int, ...]:
    """Numbers of blocks, parted by commas, in their order."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"numbers of blocks parted by commas are wanted, such as 2,4,6, not {text!r}"
        ) from None


def recipe_of(arguments: argparse.Namespace) -> tuple[str, Any]:
    """The preset's name, and its recipe with what is given in place of the preset's own."""
    from nestar.training import presets

    registry = {"tokenizer": presets.TOKENIZERS, "nesting": presets.NESTINGS, "features": presets.FEATURES}[
        arguments.what
    ]
    name = arguments.preset or next(iter(registry))
    if name not in registry:
        raise SettingsError(f"Unknown preset {name!r}: allowed are {', '.join(registry)}.")
    given = {
        key: getattr(arguments, key)
        for key in (
            "batch",
            "pool",
            "pool_from",
            "coordination",
            "seed",
            "precision",
            "modules",
            "autoguidance",
            "split",
            *SHAPE,
        )
    }
    given = {key: value for key, value in given.items() if value is not None}
    if "split" in given and "split" in registry[name].__dataclass_fields__:
        if "blocks" in given:
            raise SettingsError("--split says how many blocks there are: leave out --blocks.")
        given["blocks"] = sum(given["split"])
    if arguments.what == "nesting" and (arguments.k is not None or arguments.order is not None):
        given["nesting"] = _nesting(registry[name].nesting, arguments.k, arguments.order)
    check_batch(arguments)
    for key in SIZES:
        if given.get(key, 1) < 1:
            raise SettingsError(f"--{key} must be at least 1, got {given[key]}.")
    if not VARIANT.fullmatch(given.get("variant", "x")):
        raise SettingsError(f"--variant takes up to 40 letters, digits, - and _, not {given['variant']!r}.")
    if not 0 <= given.get("seed", 0) <= MAX_TRAINING_SEED:
        raise SettingsError(f"--seed must be from 0 to {MAX_TRAINING_SEED}, got {arguments.seed}.")
    if arguments.pool is not None and arguments.pool < 1:
        raise SettingsError(f"--pool must be at least 1, got {arguments.pool}.")
    if not 0 <= given.get("pool_from", 0) <= MAX_POOL_FROM:
        raise SettingsError(f"--pool-from must be from 0 to {MAX_POOL_FROM}, got {arguments.pool_from}.")
    for flag, value in (("--pool", arguments.pool), ("--pool-from", arguments.pool_from)):
        if value is not None and arguments.data is not None:
            raise SettingsError(f"{flag} is of Tiny Worlds; of a folder (--data) all pictures are used.")
    if arguments.accumulate is not None and arguments.accumulate < 1:
        raise SettingsError(f"--accumulate must be at least 1, got {arguments.accumulate}.")
    if given.get("autoguidance") and "coordination" in given:
        raise SettingsError("With --autoguidance neighbours are not coordinated: leave out --coordination.")
    if not 0 <= given.get("coordination", 0) < math.inf:
        given_value = arguments.coordination
        raise SettingsError(f"--coordination must be a finite number of at least 0, got {given_value}.")
    for key in given:
        if key not in registry[name].__dataclass_fields__:
            raise SettingsError(f"--{key.replace('_', '-')} does not apply to {arguments.what}.")
    try:
        return name, replace(registry[name], **given)
    except ValueError as error:
        raise SettingsError(f"{str(error).removesuffix('.')}.") from None


def _nesting(preset: Nesting, k: int | None, order: str | None) -> Nesting:
    """On the preset's grid, with this k and order in place of its own."""
    if order is not None and order not in ORDERS_OF_KIND["nested"]:
        allowed = ", ".join(ORDERS_OF_KIND["nested"])
        raise SettingsError(f"Unknown order {order!r} of a nesting: allowed are {allowed}.")
    if k is None and preset.kind != "nested":
        raise SettingsError(f"The preset's nesting is {preset.name}: --order goes with --k there.")
    if k is not None and not 2 <= k <= preset.n:
        raise SettingsError(f"--k must be from 2 to {preset.n}, the tokens of the preset's grid, got {k}.")
    of_preset = order or (preset.order if preset.kind == "nested" else ORDERS[0])
    return Nesting.nested(preset.height, preset.width, k or preset.k, order=of_preset)


def budget_of(arguments: argparse.Namespace, preset: str) -> Budget:
    from nestar.training.loop import Budget
    from nestar.training.presets import STEPS

    minutes, steps = arguments.minutes, arguments.steps
    if minutes is None and steps is None:
        steps = STEPS.get(preset)
    if (minutes is None) == (steps is None):
        raise SettingsError("Give --minutes or --steps, one of the two.")
    try:
        return Budget(minutes=minutes, steps=steps)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def refuse_flags(arguments: argparse.Namespace, *names: str) -> None:
    """Refuse flags that were given and do not apply to what is trained."""
    for name in names:
        if getattr(arguments, name) is not None:
            raise SettingsError(f"--{name.replace('_', '-')} does not apply to {arguments.what}.")
