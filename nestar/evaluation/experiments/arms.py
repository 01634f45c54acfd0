"""Training arms: recipes that differ in one thing and see equal images, each a run of `training.loop`.

An arm lives in `<runs>/<experiment>/<arm>/`: its state, its export, and `run.json`, what was asked for.
A finished arm is used again, by another experiment too if that asks for the same; an unfinished one goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nestar.evaluation.experiments.study import OutOfTime, Study
from nestar.model import NestAR, WeightsError
from nestar.settings import SettingsError
from nestar.training.loop import STATE_FILE, Budget, Cadence, let_go, train
from nestar.training.nesting import LatentPools, NestingTask, NestingTrainConfig
from nestar.training.runs import RUN_FILE, asked_for, check_run, write_run

CADENCE = Cadence(checkpoint=120.0, validate=60.0, picture=600.0)

WARMUP = 10
"""An arm's rate rises for one of so many of its steps at most: a hundred steps were most of a short arm's."""


@dataclass(frozen=True)
class Arm:
    """One recipe of a comparison; `label` names it in the figure."""

    name: str
    label: str
    config: NestingTrainConfig


class Trained(NamedTuple):
    """A finished arm: its averaged weights, how it was trained, and where."""

    arm: Arm
    model: NestAR
    record: dict[str, Any]
    folder: Path


def steps_of(study: Study) -> int:
    """Optimiser steps of every arm."""
    return study.options.images_per_arm // study.options.base.batch


def check(study: Study, arms: Sequence[Arm]) -> None:
    """Refuse arms that cannot be trained, before anything is.

    Raises:
        SettingsError: fewer images than a batch, a recipe that does not fit the tokenizer and the feature
            network, or an arm's folder that holds a run of another recipe.
    """
    base, images = study.options.base, study.options.images
    if images < base.batch:
        raise SettingsError(f"--images must be at least a batch of {base.batch}, got {images}.")
    stride = study.pipeline.tokenizer.stride
    sides = {base.nesting.height * stride, base.nesting.width * stride, base.size}
    if len(sides | {study.features.size or base.size}) > 1:
        raise SettingsError(
            f"The recipe is for {base.size}x{base.size} pictures of {base.nesting.height}x"
            f"{base.nesting.width} tokens, which does not fit a tokenizer of {stride} pixels a token and "
            f"features of {study.features.size or 'any'} pixels; give another --preset or --repo."
        )
    for arm in arms:
        folder, asked = _folder(study, arm), _asked(study, arm)
        stands = any((folder / file).exists() for file in (RUN_FILE, STATE_FILE))
        if stands and _finished(study, arm, asked) is None:
            check_run(folder, asked, NestingTrainConfig)


def trained(study: Study, arms: Sequence[Arm]) -> dict[str, Trained]:
    """Train the arms that are not finished yet, one after another; describes all in `study.arms`.

    Raises:
        SettingsError: as `check` does.
        OutOfTime: time is up, or the run was asked to stop; what has been trained stays.
    """
    check(study, arms)
    study.expect(len(arms))
    pools = None
    done: dict[str, Trained] = {}
    for arm in arms:
        asked = _asked(study, arm)
        found = _finished(study, arm, asked)
        if found is None:
            study.check_time(f"the arm {arm.name} was trained")
            if pools is None:
                pools = LatentPools.load(arm.config, study.pipeline.tokenizer, study.options.cache)
            _train(study, arm, asked, pools)
            found = _finished(study, arm, asked)
        if found is None:
            raise WeightsError(f"{_folder(study, arm)} does not hold the weights that were just trained.")
        done[arm.name] = found
        study.arms.append(_described(study, found))
        study.bar.update()
    return done


def _folder(study: Study, arm: Arm) -> Path:
    return study.options.runs / study.name / arm.name


def _asked(study: Study, arm: Arm) -> dict[str, Any]:
    """What `run.json` holds: all that decides the arm's weights."""
    budget = _budget(study)
    more = {
        "images": study.options.images_per_arm,
        "tokenizer": study.pipeline.tokenizer.latents_fingerprint,
        # Its steps are the images'.
        "rate": {"warmup_steps": budget.warmup_steps, "decay_from": budget.decay_from},
    }
    return asked_for(arm.config, study.pipeline.device, **more)


def _budget(study: Study) -> Budget:
    steps = steps_of(study)
    return Budget(steps=steps, warmup_steps=max(1, min(Budget.warmup_steps, steps // WARMUP)))


def _finished(study: Study, arm: Arm, asked: Mapping[str, Any]) -> Trained | None:
    """This arm, finished by this experiment or by another that asked for the same, on whatever device."""
    others = sorted(file.parent for file in study.options.runs.glob(f"*/*/{RUN_FILE}"))
    for folder in dict.fromkeys([_folder(study, arm), *others]):
        weights = folder / arm.config.weights_name
        try:
            check_run(folder, asked, NestingTrainConfig, ("device",))
            model = NestAR.from_pretrained(weights)
            record = model.record
        except (SettingsError, WeightsError):  # another run, not exported yet, or stopped while it was
            continue
        if record.get("finished"):
            return Trained(arm, model.to(study.pipeline.device), record, folder)
    return None


def _train(study: Study, arm: Arm, asked: Mapping[str, Any], pools: LatentPools) -> None:
    options, device, folder = study.options, study.pipeline.device, _folder(study, arm)
    write_run(folder, asked)
    task = NestingTask(
        arm.config,
        study.pipeline.tokenizer,
        device,
        options.cache,
        compile_modules=options.compile_modules,
        pools=pools,
    )
    budget = _budget(study)
    record = train(
        task,
        budget,
        folder,
        cadence=CADENCE,
        record={"experiment": study.name, "arm": arm.name, "device": device.type},
        deadline=options.deadline,
    )
    del task
    let_go(device, options.compile_modules)
    if not record["finished"]:
        raise OutOfTime(f"The arm {arm.name} was stopped at step {record['steps']} of {budget.steps}.")


def _described(study: Study, done: Trained) -> dict[str, Any]:
    """An arm's entry in the report; only what may differ between arms is named of its recipe."""
    base, own = asdict(study.options.base), asdict(done.arm.config)
    return {
        "arm": done.arm.name,
        "label": done.arm.label,
        "differs": {key: value for key, value in own.items() if value != base[key]},
        "images": done.record["steps"] * done.arm.config.batch,
        "steps": done.record["steps"],
        "parameters": done.model.config.parameters,
        "train_seconds": done.record["train_seconds"],
        "held_out": {key: value for key, value in done.record.items() if key.startswith("held_")},
        "folder": str(done.folder),
        "weights": study.print_of(done.model),
    }
