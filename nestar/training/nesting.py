"""Training a nesting on cached latents: flow matching in every module, coordination between neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nestar.checkpoints import weights_name
from nestar.data import tiny_worlds
from nestar.data.image_folder import ImageFolder
from nestar.data.pools import (
    HELD_OUT_SEED,
    TRAIN_SEED,
    ImagePool,
    LatentShards,
    folder_latents,
    latent_pool,
    latents_file,
    shard_files,
)
from nestar.engine import PRECISIONS, autocast, gpu_kernels, products_in
from nestar.flow import (
    CLEAN_SHARE,
    Part,
    check_coordination_tokens,
    flow_matching_loss,
    shared_patch_losses,
)
from nestar.model import NestAR, NestARConfig, WeightsError, summed_over_runs
from nestar.nesting import Nesting, Scale
from nestar.processes import ALONE, Group, Worker
from nestar.sampler import sample_images
from nestar.settings import SettingsError
from nestar.tokenizer import Tokenizer, tokens_of
from nestar.training.autoguidance import Teacher, check_earlier, check_guidance
from nestar.training.depth import at_depths
from nestar.training.epochs import Epochs
from nestar.training.loop import prefixed, start_from, step_generator, unprefixed
from nestar.training.optim import MovingAverage, MuonAdamW, OptimizerConfig
from nestar.training.tokenizer import save_grid

PICTURED = 16
"""Classes on a contact sheet, at most."""

PARTS = 2003
"""Streams of noise that a seed has: those of seed s are numbered from PARTS * s on. A module's is its own
number, from 1."""
SHARED = 1000
"""Added to a module's number: the stream for the tokens that it shares with the next."""
EPOCHS = 2000
"""The stream that orders a folder's epochs."""
HELD_OUT = -1
"""The stream of validation."""

NOT_MUON = ("embed", "position", "time", "label", "modulation", "final_modulation", "head", "qk_scale")
"""Parts that AdamW trains: first and last layers, embeddings, adaLN, and gains."""


@dataclass(frozen=True)
class NestingTrainConfig:
    """How a nesting is trained.

    Attributes:
        modules: numbers of the scaled modules to train; the others stay as `init` has them. Empty: all.
        autoguidance: a of `autoguidance.Teacher`, whose velocities modules learn in place of the data's:
            beyond what they were at the start, away from what they were earlier. What they say of the tokens
            they share is let be then. 0: the data's.
        coordination: weight lambda of the coordination loss.
        coordination_tokens: which shared tokens it compares, see `flow.shared_patch_losses`.
        coordination_from: optimiser step from which it acts; modules train separately until then.
        shared_rows: share of the batch on which neighbours look at the tokens both know: coordination, and
            a later module's own first patch.
        clean_share: share of rows whose context is clean, as in sampling.
        draw_power: exponent of how often a module draws each image's noise in a step, see `draws`.
        pool: latents encoded beforehand; Tiny Worlds' are read at random, a folder's epoch by epoch. A pool
            of 180,000 read five times over left module 2 as good on held-out pictures; one of 65,536 read ten
            times over did not: it had learned these alone.
        pool_from: number of the pool's first picture in Tiny Worlds' stream: beyond those that the weights to
            begin with have learned from, all are new to them.
        held_out: latents that the modules are measured on; of a folder's held-out pictures at most so many.
        classes: number of classes; Tiny Worlds' unless a folder of pictures has others.
        split: blocks of each scaled module, where they are not split evenly; they add up to `blocks`. Weights
            to begin with may have other numbers in modules that are trained, see `depth.at_depths`.
        variant: tells apart trainings of one nesting; the weights go to `<nesting>.<variant>`.
        precision: of matrix products, one of `engine.PRECISIONS`; weights and optimiser are float32 always.
    """

    nesting: Nesting = field(default_factory=lambda: Nesting.nested(8, 8, 4))
    size: int = 128
    dim: int = NestARConfig.dim
    heads: int = NestARConfig.heads
    blocks: int = NestARConfig.blocks
    cond_dim: int = NestARConfig.cond_dim
    classes: int = len(tiny_worlds.CLASSES)
    batch: int = 128
    pool: int = 180_000
    pool_from: int = 0
    held_out: int = 1024
    label_drop: float = 0.1
    clean_share: float = CLEAN_SHARE
    draw_power: float = 0.5
    modules: tuple[int, ...] = ()
    autoguidance: float = 0.0
    coordination: float = 0.1
    coordination_tokens: str = "last"
    coordination_from: int = 0
    shared_rows: float = 0.25
    split: tuple[int, ...] = ()
    seed: int = 0
    variant: str = ""
    precision: str = "auto"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        check_coordination_tokens(self.coordination_tokens)
        check_guidance(self.autoguidance)
        if self.precision not in PRECISIONS:
            raise ValueError(f"Unknown precision {self.precision!r}: allowed are {', '.join(PRECISIONS)}.")
        strangers = [number for number in self.modules if not 1 <= number <= self.nesting.modules]
        if strangers:
            raise ValueError(
                f"{self.nesting.name} has modules 1 to {self.nesting.modules}, no module {strangers[0]}."
            )
        self.model_config(channels=1)  # refuses what is no shape

    def trains(self, number: int) -> bool:
        """Whether the scaled module of this number is trained."""
        return not self.modules or number in self.modules

    @property
    def trained(self) -> tuple[int, ...]:
        """Numbers of the scaled modules that are."""
        return tuple(scale.number for scale in self.nesting.scales if self.trains(scale.number))

    def draws(self, scale: Scale) -> int:
        """Noise draws of each image in a step of this module. The first modules decide what is in the
        picture and have few tokens: their gradients are the noisiest, and more draws cost them little."""
        return max(1, round((self.nesting.n / scale.tokens) ** self.draw_power))

    @property
    def weights_name(self) -> str:
        """Folder that the trained weights are exported to."""
        return weights_name(self.nesting, self.variant)

    def model_config(self, channels: int) -> NestARConfig:
        """Shape of the model, for a tokenizer with this many channels."""
        return NestARConfig(
            self.nesting,
            channels=channels,
            classes=self.classes,
            dim=self.dim,
            heads=self.heads,
            blocks=self.blocks,
            cond_dim=self.cond_dim,
            split=self.split,
        )


@dataclass(frozen=True)
class LatentPools:
    """What nestings are trained on and measured with, on the CPU; each reads the grid in its own order, so
    several can share one.

    Attributes:
        latents_NChw, class_ids_N: of `pool` training images, float16, scaled.
        held_latents_NChw, held_ids_N: of `held_out` others.
        classes: names; made_of: fingerprint of a folder's pictures, "" for Tiny Worlds.
        pictures: of a folder, P: the latents are theirs and, behind them, those of their mirror images; 0 for
            Tiny Worlds.
    """

    latents_NChw: Tensor | LatentShards
    class_ids_N: Tensor
    held_latents_NChw: Tensor
    held_ids_N: Tensor
    classes: tuple[str, ...] = tiny_worlds.CLASSES
    made_of: str = ""
    pictures: int = 0

    @classmethod
    def of_folder(
        cls,
        train: ImageFolder,
        held: ImageFolder,
        size: int,
        tokenizer: Tokenizer,
        cache: Path,
        *,
        worker: Worker | None = None,
    ) -> LatentPools:
        """Of pictures in a folder, those for training in their mirror images, too; encoded once, by all
        processes together, and kept in `cache`, which they share.

        Raises:
            SettingsError: some of them cannot be read; they are named.
        """
        made_by = f"{size}_{tokenizer.latents_fingerprint}"
        places = [cache / f"latents_folder_{folder.fingerprint}_{made_by}" for folder in (train, held)]
        counts = 2 * len(train), len(held)
        if worker is None or worker.rank == 0:  # before the first is encoded, which may take hours
            for folder, place, count in zip((train, held), places, counts, strict=True):
                if not all(file.exists() for file in shard_files(place, count)):
                    folder.check()
        latents, held_latents = (
            folder_latents(place, tokenizer, folder, size, flips=flips, worker=worker)
            for folder, place, flips in zip((train, held), places, (True, False), strict=True)
        )
        return cls(
            latents,
            train.class_ids_N.repeat(2),
            held_latents[torch.arange(len(held))],
            held.class_ids_N,
            train.classes,
            train.fingerprint,
            len(train),
        )

    @classmethod
    def load(
        cls, config: NestingTrainConfig, tokenizer: Tokenizer, cache: Path, worker: Worker | None = None
    ) -> LatentPools:
        """Of Tiny Worlds, from files in `cache`, or drawn and encoded, and kept there."""
        made_by = tokenizer.latents_fingerprint

        def pool(count: int, seed: int, first: int = 0) -> tuple[Tensor, Tensor]:
            file = latents_file(cache, count, config.size, seed, made_by, first)
            images = None if first else ImagePool.drawn(cache, count, config.size, seed)
            return latent_pool(
                file, tokenizer, count, config.size, seed=seed, first=first, images=images, worker=worker
            )

        return cls(*pool(config.pool, TRAIN_SEED, config.pool_from), *pool(config.held_out, HELD_OUT_SEED))


def parts_of(batch: int, worker: Worker, accumulate: int) -> list[Part]:
    """The rows of a batch that a process runs, `accumulate` parts of equal size one after another. The parts
    of all processes interleave, so that each has its share of the first rows, which coordination looks at.

    Raises:
        SettingsError: the batch has no such parts.
    """
    count = worker.world * accumulate
    if batch % count:
        raise SettingsError(
            f"A batch of {batch} has no {count} equal parts ({worker.world} processes x {accumulate} "
            f"accumulated): it takes a multiple of {count}."
        )
    return [Part(batch, slice(first, None, count)) for first in range(worker.rank, count, worker.world)]


def check_grid(config: NestingTrainConfig, tokenizer: Tokenizer) -> None:
    """Raises SettingsError where pictures of the recipe's size are no grid of its nesting's."""
    nesting, side = config.nesting, config.size / tokenizer.stride
    if (nesting.height, nesting.width) != (side, side):
        raise SettingsError(
            f"The recipe is for {nesting.height} x {nesting.width} tokens; the tokenizer makes {side:g} x "
            f"{side:g} of pictures of {config.size} pixels."
        )


def check_start(config: NestingTrainConfig, tokenizer: Tokenizer, init: NestAR) -> None:
    """Whether a run may start from these weights. Nestings of one shape may take tokens in different orders,
    and a module that is not trained stays what it was.

    Raises:
        WeightsError: they are of another nesting or shape (where the recipe splits blocks, trained modules
            may have other numbers), or, where only some modules are trained or their own velocities teach
            them, were trained behind another tokenizer.
    """
    if init.config.nesting != config.nesting:
        raise WeightsError(f"--init is of {init.config.nesting.name}, the recipe of {config.nesting.name}.")
    wanted = asdict(config.model_config(tokenizer.channels))
    differ = [
        f"{name} {value} (the recipe has {wanted[name]})"
        for name, value in asdict(init.config).items()
        if value != wanted[name] and not (config.split and name in ("blocks", "split"))
    ]
    if differ:
        raise WeightsError(f"--init has another shape: {', '.join(differ)}.")
    for number, (own, depth) in enumerate(zip(init.config.depths, config.split, strict=False), 1):
        if own != depth and not config.trains(number):
            raise WeightsError(
                f"Module {number} of --init has {own} blocks: to have {depth} it must be trained."
            )
    made_for = init.record.get("latents", tokenizer.latents_fingerprint)
    if (config.modules or config.autoguidance) and made_for != tokenizer.latents_fingerprint:
        raise WeightsError(
            "--init was trained behind another tokenizer: all its modules have to be trained on, without "
            "autoguidance."
        )


def check_weights(
    config: NestingTrainConfig, tokenizer: Tokenizer, init: NestAR | None, away_from: NestAR | None
) -> None:
    """Whether a run may begin with these weights: all that can be told before pictures are encoded, which may
    take hours.

    Raises:
        SettingsError: only some modules are to be trained, and there is no `init`, or autoguidance is asked
            for without `init` and `away_from`, or these without it, or the tokenizer makes another grid than
            the nesting's.
        WeightsError: `init` is no start for this, see `check_start`, or `away_from` is nothing to be guided
            by, see `autoguidance.check_earlier`.
    """
    if config.modules and init is None:
        raise SettingsError("Some modules are trained beside others that stay: --init names their weights.")
    if bool(config.autoguidance) != (away_from is not None) or (away_from is not None and init is None):
        raise SettingsError(
            "--autoguidance leads from what a module was earlier to what it is and beyond: it takes "
            "--away-from and --init, and --away-from takes both."
        )
    check_grid(config, tokenizer)
    if init is not None:
        check_start(config, tokenizer, init)
    if init is not None and away_from is not None:
        check_earlier(init, away_from, config.trained)


def check_classes(config: NestingTrainConfig, init: NestAR | None, classes: Sequence[str]) -> None:
    """Raises WeightsError where modules that stay as `init` has them, or are taught by it, know others."""
    known = init.record.get("classes") if init and (config.modules or config.autoguidance) else None
    if known is not None and known != list(classes):
        raise WeightsError(
            "--init was trained on other classes: all its modules have to be trained on, without "
            "autoguidance."
        )


def pictures_before(weights: NestAR) -> int:
    """How many pictures of Tiny Worlds' stream, from its first, weights may have been trained on. Records of
    before this was noted are of Tiny Worlds."""
    record, config = weights.record, weights.record.get("config")
    numbers = [record.get("pictures_before")]
    if "pictures_before" not in record and isinstance(config, Mapping):
        numbers = [config.get("pool_from"), config.get("pool")]
    return sum(number for number in numbers if type(number) is int)


class NestingTask:
    """What `training.loop.train` needs to train a nesting on latents.

    What a row shows, at which times and under which noise, and whether its label is dropped, are functions
    of the seed and of its place in the run (step and row, and so epoch and place in it), counted from behind
    the steps that `init` has taken: any number of processes and of accumulated parts takes the same steps, up
    to the order of additions.

    Args:
        init: gives the first weights.
        away_from: with autoguidance, the same nesting, less trained.
        pools: the data, where several tasks share one or it is a folder's (Tiny Worlds' from `cache`
            otherwise).
        group: the processes that share each batch.
        accumulate: parts that a process runs its rows in, one after another: as much less memory.
        checkpoint_activations: keep the blocks' inputs alone for the backward pass, which runs each block
            again: far less memory, a third more work.

    Raises:
        SettingsError: the batch has no parts of equal size for so many processes and accumulated parts, or
            see `check_weights`.
        WeightsError: see `check_weights`.
    """

    def __init__(
        self,
        config: NestingTrainConfig,
        tokenizer: Tokenizer,
        device: torch.device,
        cache: Path,
        *,
        compile_modules: bool = False,
        init: NestAR | None = None,
        away_from: NestAR | None = None,
        pools: LatentPools | None = None,
        group: Group = ALONE,
        accumulate: int = 1,
        checkpoint_activations: bool = False,
    ):
        check_weights(config, tokenizer, init, away_from)
        check_classes(config, init, pools.classes if pools else tiny_worlds.CLASSES)
        self.config, self.device, self.tokenizer, self.group = config, device, tokenizer, group
        self.parts = parts_of(config.batch, group.worker, accumulate)
        pools = pools or LatentPools.load(config, tokenizer, cache, group.worker)
        self.classes, self.class_names = len(pools.classes), pools.classes
        held = len(pools.latents_NChw), len(pools.held_latents_NChw), len(pools.classes)
        if held != (config.pool, config.held_out, config.classes):
            expected = config.pool, config.held_out, config.classes
            raise ValueError(f"The pools hold {held} latents and classes, expected {expected}.")
        seen = 0 if init is None else pictures_before(init)
        record = {} if init is None else init.record
        self.steps_before = int(summed_over_runs(record, "steps"))
        counts = ("images_seen", "images_seen_by_modules")  # batches may have had another size
        self.images_before = sum(int(summed_over_runs(record, count)) for count in counts)
        self.pictures_before = seen if pools.made_of else max(seen, config.pool_from + config.pool)
        self.latents, self.class_ids = pools.latents_NChw, pools.class_ids_N.to(device)
        if isinstance(self.latents, Tensor):
            self.latents = self._tokens(self.latents)
        self.epochs = Epochs(pools.pictures, config.seed * PARTS + EPOCHS) if pools.pictures else None
        self.held_latents, self.held_ids = self._tokens(pools.held_latents_NChw), pools.held_ids_N.to(device)
        torch.manual_seed(config.seed)  # after the pools: what they draw must not move the first weights
        self.model = NestAR(config.model_config(tokenizer.channels)).to(device)
        if init is not None:
            start_from(self.model, at_depths(init, self.model.config.depths))
        self.ema = MovingAverage(self.model, config.optimizer.ema)
        self.teachers: dict[int, Teacher] = {}
        if away_from is not None:
            pairs = zip(self.model.scaled_modules, away_from.to(device).scaled_modules, strict=True)
            teachers = [Teacher(now, earlier, config.autoguidance) for now, earlier in pairs]
            self.teachers = {number: teachers[number - 1] for number in config.trained}
        self.optimizers: list[MuonAdamW] = []
        for number, module in enumerate(self.model.scaled_modules, 1):
            module.checkpoints = checkpoint_activations
            module.requires_grad_(config.trains(number))
            if config.trains(number):
                named = module.named_parameters()
                self.optimizers.append(MuonAdamW(named, config.optimizer, exclude=NOT_MUON))
        if compile_modules:
            torch._dynamo.config.recompile_limit = 64  # one graph a shape: patches, rows, coordination
            frozen = [part for each in self.teachers.values() for part in (each.module, each.earlier)]
            for module in [*self.model.scaled_modules, *frozen]:
                for block in module.blocks:  # blocks share their graphs; whole modules would not
                    block.compile(dynamic=False)

    def _tokens(self, latents_NChw: Tensor) -> Tensor:
        """Tokens (N, n, C) in sequence order, on the device."""
        tokens_NnC = tokens_of(latents_NChw, self.config.nesting)
        return tokens_NnC.contiguous().to(self.device, non_blocking=True)

    def train_step(self, step: int, lr_factor: float) -> dict[str, Tensor]:
        """One optimiser step of every module; returns its losses, on the device. Gradients are clipped per
        module, and each module draws its noise by (seed, step, module): with lambda = 0 the modules train
        exactly as if alone."""
        index_B, dropped_B = self._rows(step)
        losses: dict[str, Tensor] = {}
        for part in self.parts:
            x_BNC, class_ids_B = self._batch(index_B[part.rows], dropped_B[part.rows])
            with self._autocast(), quick_attention(self.device):
                own = self._backward(step, part, x_BNC, class_ids_B)
            losses = {name: loss + losses[name] if losses else loss for name, loss in own.items()}
        gradients = [value.grad for value in self.model.parameters() if value.grad is not None]
        self.group.add([*gradients, *losses.values()])
        for optimizer in self.optimizers:
            optimizer.step(lr_factor)
        self.ema.update_parameters(self.model)
        return losses

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.config.precision)

    def _rows(self, step: int) -> tuple[Tensor, Tensor]:
        """Which latents the rows of this step's batch show, and whose label is dropped; on the CPU."""
        batch = self.config.batch
        rows = step_generator(self.config.seed, self.steps_before + step, torch.device("cpu"))
        if self.epochs is None:
            index_B = torch.randint(len(self.latents), (batch,), generator=rows)
        else:
            index_B = self.epochs.index(self.images_before + step * batch, batch)
        return index_B, torch.rand(batch, generator=rows) < self.config.label_drop

    def _batch(self, index_B: Tensor, dropped_B: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, n, C) and class ids (B,) on the device."""
        index, dropped_B = (drawn.to(self.device, non_blocking=True) for drawn in (index_B, dropped_B))
        is_shards = isinstance(self.latents, LatentShards)
        x_BNC = self._tokens(self.latents[index_B]) if is_shards else self.latents[index]
        return x_BNC.float(), self.class_ids[index].masked_fill(dropped_B, self.classes)

    def _backward(self, step: int, part: Part, x_BNC: Tensor, class_ids_B: Tensor) -> dict[str, Tensor]:
        """Add a part's gradients; returns its losses. Both are its share of the batch's: over all parts they
        add up to the batch's own."""
        losses: dict[str, Tensor] = {}
        share = len(part) / part.batch
        modules, scales = self.model.scaled_modules, self.config.nesting.scales
        for module, scale in zip(modules, scales, strict=True):
            if not self.config.trains(scale.number):
                continue
            draws = self.config.draws(scale)
            loss = share * flow_matching_loss(
                module,
                scale,
                x_BNC.repeat(draws, 1, 1),
                class_ids_B.repeat(draws),
                clean_share=self.config.clean_share,
                teacher=self.teachers.get(scale.number),
                generator=self._noise(step, scale.number),
                part=part,
            )
            loss.backward()
            losses[f"m{scale.number}"] = loss.detach()
        for m in range(1, len(modules)):
            losses |= self._shared_patch(step, m, part, x_BNC, class_ids_B)
        return losses

    def _shared_patch(
        self, step: int, m: int, part: Part, x_BNC: Tensor, class_ids_B: Tensor
    ) -> dict[str, Tensor]:
        """Gradients from the tokens that modules m and m + 1 share, on the first rows of the batch."""
        rows = round(self.config.shared_rows * part.batch)
        if not rows or self.teachers:
            return {}
        part = part.of_first(rows)
        modules, scales = self.model.scaled_modules, self.config.nesting.scales
        coordinated = self.config.coordination and step >= self.config.coordination_from
        if not (self.config.trains(m + 1) or (coordinated and self.config.trains(m))):
            return {}
        if not len(part):  # more parts than such rows: this one has none of them
            return {f"c{m}": x_BNC.new_zeros(())} if coordinated else {}
        first, coordination = shared_patch_losses(
            modules[m - 1] if coordinated else None,
            scales[m - 1],
            modules[m],
            x_BNC[: len(part)],
            class_ids_B[: len(part)],
            coordination_tokens=self.config.coordination_tokens,
            generator=self._noise(step, SHARED + m),
            part=part,
        )
        share = len(part) / rows
        generated = sum(patch.size for patch in scales[m].generated)
        # A token noised here weighs as much as one that the module generates, at one draw.
        weight = rows * scales[m - 1].tokens / (self.config.batch * generated)
        if coordination is None:
            (share * weight * first).backward()
            return {}
        (share * (weight * first + self.config.coordination * coordination)).backward()
        return {f"c{m}": share * coordination.detach()}

    def _noise(self, step: int, part: int) -> torch.Generator:
        """What a training step draws; not what the run drew that its first weights come from."""
        return self._generator(self.steps_before + step, part)

    def _generator(self, step: int, part: int) -> torch.Generator:
        return step_generator(self.config.seed * PARTS + part, step, self.device)

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Held-out loss of each averaged module: with clean context (`held_clean_m`), as sampling runs, and
        with noised context (`held_m`)."""
        result: dict[str, float] = {}
        model: NestAR = self.ema.module
        parts = list(zip(self.held_latents.split(256), self.held_ids.split(256), strict=True))
        for module, scale in zip(model.scaled_modules, self.config.nesting.scales, strict=True):
            for name, clean_share in (("held_clean", 1.0), ("held", 0.0)):
                total = 0.0
                for number, (x_BNC, ids) in enumerate(parts):
                    with self._autocast():
                        total += (
                            len(ids)
                            * flow_matching_loss(
                                module,
                                scale,
                                x_BNC.float(),
                                ids,
                                clean_share=clean_share,
                                generator=self._generator(number, HELD_OUT),
                            ).item()
                        )
                result[f"{name}_{scale.number}"] = total / len(self.held_ids)
        return result

    def picture(self, path: Path) -> None:
        """Samples of the averaged model: a row a class (of many the first), eight seeds."""
        ids = torch.arange(min(self.classes, PICTURED)).repeat_interleave(8)
        images = sample_images(self.ema.module.eval(), self.tokenizer, ids, list(range(len(ids))))
        save_grid(images, 8, path)
        self.ema.module.train()

    def state_tensors(self) -> dict[str, Tensor]:
        tensors = {**prefixed("model", self.model.state_dict()), **prefixed("ema", self.ema.state_dict())}
        for number, optimizer in enumerate(self.optimizers):
            tensors |= prefixed(f"optimizer{number}", optimizer.state_tensors())
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.model.load_state_dict(unprefixed("model", tensors))
        self.ema.load_state_dict(unprefixed("ema", tensors))
        for number, optimizer in enumerate(self.optimizers):
            optimizer.load_state_tensors(unprefixed(f"optimizer{number}", tensors))

    def export(self, folder: Path, record: dict[str, Any]) -> None:
        """Write the averaged model as a nesting's folder."""
        images, modules = record["steps"] * self.config.batch, list(self.config.modules)
        guided = {"modules": sorted(self.teachers), "by": self.config.autoguidance}
        described = {
            **record,
            **({"autoguided": [guided]} if self.teachers else {}),
            # What every module has seen is one thing, what these saw beside it another.
            **(
                {"modules": modules, "images_seen_by_modules": images} if modules else {"images_seen": images}
            ),
            # Of Tiny Worlds' stream: those from here on are new to all modules, see `pool_from`.
            "pictures_before": self.pictures_before,
            "products": products_in(self.device, self.config.precision),
            "latents": self.tokenizer.latents_fingerprint,
            "classes": list(self.class_names),
            "config": {**asdict(self.config), "nesting": self.config.nesting.name},
        }
        self.ema.module.save_pretrained(folder / self.config.weights_name, record=described)


def quick_attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU, attention by plain matrix products: in a profile of the embedded k = 4 the fused kernel's
    backward pass alone took 29 % of a training step, with heads as small as these. On a GPU as when
    sampling."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else gpu_kernels(device)
