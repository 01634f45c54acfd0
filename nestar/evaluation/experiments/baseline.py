"""The baseline: module 1 alone learns its tokens.

It is module 1 of the arm with lambda = 0, at which a module trains exactly as if the others were not there.
What it has learned is held against Gaussians of the same tokens, a mean for each class and a covariance for
all; its samples against other held-out tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from nestar import plots
from nestar.data.pools import held_out_tokens
from nestar.evaluation import metrics
from nestar.evaluation.experiments.arms import Arm, Trained, trained
from nestar.evaluation.experiments.findings import known, lowest, pick
from nestar.evaluation.experiments.rows import Row
from nestar.evaluation.experiments.study import Experiment, Study, arms_note
from nestar.evaluation.report import SEED_STRIDE
from nestar.flow import sample_times
from nestar.model import NestAR
from nestar.sampler import PatchDone, SolverSettings, sample
from nestar.training.loop import LOG_FILE

BATCH = 64
QUADRATURE = 100_000
"""Times drawn to average the Gaussian's loss over the time law."""

WORDS = {"held out": "other pictures", "sampled": "module 1's samples", "noise": "noise"}


def measure(study: Study) -> None:
    options = study.options
    done = trained(study, [Arm("alone", "module 1 alone", replace(options.base, coordination=0.0))])["alone"]
    settings = replace(options.settings, cfg=1.0, temperature=1.0)  # its own distribution
    study.design |= {
        "module_1_alone": "lambda = 0: it trains exactly as if the others were not there",
        "settings": asdict(settings),
        "gaussian": "loss of the best predictor that knows the class, each class's mean, the covariance "
        "within classes, and the tokens before",
        "tokens": "Frechet distance, precision and recall of module 1's tokens, of equally many each",
    }
    study.expect(2)
    key = {
        "baseline": study.print_of(done.model),
        "samples": options.samples,
        "seed": options.seed,
        "settings": asdict(settings),
    }
    found = study.once("module 1's tokens were compared", key, lambda: _compared(study, done, settings))
    fitted = {"samples": 2 * options.samples}  # both halves of `_compared`
    study.rows.append({"part": "gaussian", "member": "gaussian", **fitted, "loss": found["gaussian_loss"]})
    study.bar.update()
    study.rows += [
        {"part": "tokens", "member": name, "samples": options.samples, **row}
        for name, row in found["tokens"].items()
    ]
    study.rows += [{"part": "curve", "member": "module 1", **entry} for entry in curve(done)]
    study.bar.update()


def _compared(study: Study, done: Trained, settings: SolverSettings) -> dict[str, Any]:
    """Token sets of equal size against held-out tokens, and the Gaussian's loss on all held-out ones."""
    count = study.options.samples
    nesting = done.model.config.nesting
    x_NnC, ids_N = held_out_tokens(study.pipeline.tokenizer, nesting, 2 * count)
    x_NKC = x_NnC[:, : nesting.scales[0].tokens]
    made_NKC = first_tokens(done.model, ids_N[count:], study.options.seed * SEED_STRIDE, settings)
    noise_NKC = torch.randn(made_NKC.shape, generator=torch.Generator().manual_seed(study.options.seed))
    real_ND = x_NKC[:count].flatten(1).cpu()
    sets = {"held out": x_NKC[count:], "sampled": made_NKC, "noise": noise_NKC}
    tokens = {}
    for name, set_NKC in sets.items():
        fake_ND = set_NKC.flatten(1).cpu()
        precision, recall = metrics.precision_recall(real_ND, fake_ND)
        tokens[name] = {
            "frechet_distance": metrics.fid(real_ND, fake_ND),
            "precision": precision,
            "recall": recall,
        }
    sizes = [patch.size for patch in nesting.scales[0].patches]
    return {"gaussian_loss": gaussian_loss(x_NKC, ids_N, sizes), "tokens": tokens}


def first_tokens(model: NestAR, class_ids_N: Tensor, first_seed: int, settings: SolverSettings) -> Tensor:
    """Module 1's tokens (N, k, C) of these classes, on the CPU; the later modules are not run."""
    made = []
    known_tokens = model.config.nesting.scales[0].tokens
    for number, ids_B in enumerate(class_ids_N.split(BATCH)):
        seeds = [first_seed + number * BATCH + row for row in range(len(ids_B))]
        for event in sample(model, ids_B, seeds, settings):
            if isinstance(event, PatchDone) and event.known == known_tokens:
                made.append(event.sequence_BNC[:, :known_tokens].cpu().clone())
                break
    return torch.cat(made)


def gaussian_loss(x_NKC: Tensor, class_ids_N: Tensor, sizes: Sequence[int]) -> float:
    """Velocity error of the best predictor that knows each class's mean and the covariance within classes,
    patches one by one.

    A patch sees the clean ones before it, so what counts is its covariance given them. Along an axis of
    variance s the velocity's variance given y_t is s / (t^2 s + (1 - t)^2); averaged over axes, patches and
    the time law of training.

    Args:
        sizes: tokens of each patch; they cover all K.
    """
    channels = x_NKC.shape[2]
    x_ND, classes_N = x_NKC.double().cpu().flatten(1).clone(), class_ids_N.cpu()
    for class_id in classes_N.unique():
        own = classes_N == class_id
        x_ND[own] -= x_ND[own].mean(0)
    scatter, free = x_ND.T @ x_ND, len(x_ND) - len(classes_N.unique())
    t_T = sample_times(QUADRATURE, 1, torch.Generator().manual_seed(0), torch.device("cpu")).double()[:, 0]
    total, start = 0.0, 0
    for size in sizes:
        stop = start + size * channels
        past, own = slice(0, start), slice(start, stop)
        across = scatter[own, past]
        given = scatter[own, own] - across @ torch.linalg.pinv(scatter[past, past]) @ across.T
        # What was fitted to these very rows, means and regression, is no freedom left: unbiased so.
        for s in torch.linalg.eigvalsh(given / max(1, free - start)).clamp_min(0):
            total += (s / (t_T.square() * s + (1 - t_T).square())).mean().item()
        start = stop
    return total / start


def curve(done: Trained) -> list[Row]:
    """Held-out loss of module 1 against images seen, from the run's log; a kill leaves steps there twice."""
    losses: dict[int, float] = {}
    for line in _lines(done.folder / LOG_FILE):
        try:
            entry = json.loads(line)
        except ValueError:  # a kill in the middle of the line
            continue
        step = entry.get("step", entry.get("steps"))
        if step is not None and "held_clean_1" in entry:
            losses[step] = entry["held_clean_1"]
    return [
        {"images": step * done.arm.config.batch, "held_out_loss": loss}
        for step, loss in sorted(losses.items())
    ]


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def find(rows: list[Row], arms: list[Row]) -> dict[str, Any]:
    gaussian = lowest(pick(rows, part="gaussian"), "loss")
    learned = pick(rows, part="curve")
    tokens = {row["member"]: row for row in pick(rows, part="tokens")}
    if not gaussian or not learned or not tokens:
        return {}
    last = learned[-1]["held_out_loss"]
    distance = {name: row["frechet_distance"] for name, row in tokens.items()}
    way = distance["noise"] - distance["held out"]
    return known(
        {
            "held_out_loss": last,
            "gaussian_loss": gaussian["loss"],
            "knows_more_than_means_and_covariance": last < gaussian["loss"],
            "frechet_distance_of_tokens": distance,
            "share_of_the_way_from_noise_left": (distance["sampled"] - distance["held out"]) / way
            if way
            else None,
            "precision_of_tokens": {name: row["precision"] for name, row in tokens.items()},
            "recall_of_tokens": {name: row["recall"] for name, row in tokens.items()},
        }
    )


def draw(report: Mapping[str, Any]) -> Figure | None:
    learned, tokens = (pick(report["rows"], part=part) for part in ("curve", "tokens"))
    if not learned or not tokens:
        return None
    gaussian = lowest(pick(report["rows"], part="gaussian"), "loss")["loss"]
    panels = plots.new_figure("Module 1 alone learns its tokens" + arms_note(report), 2, columns=2)
    xs, ys = [row["images"] for row in learned], [row["held_out_loss"] for row in learned]
    plots.lines(
        panels[0],
        [plots.Series("module 1", xs, ys)],
        x_label="images seen",
        y_label="held-out velocity loss",
        title="what it has learned",
        level=plots.Point("Gaussian", 0, gaussian),
    )
    plots.bars(
        panels[1],
        [WORDS[row["member"]] for row in tokens],
        [row["frechet_distance"] for row in tokens],
        x_label="Frechet distance to held-out tokens",
        title="what it samples",
    )
    return panels[0].figure


EXPERIMENT = Experiment(
    name="baseline",
    measure=measure,
    find=find,
    draw=draw,
    trains=True,
    finals=False,
)
