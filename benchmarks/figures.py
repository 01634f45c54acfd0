"""The README's pictures, from embedded weights: `python -m benchmarks.figures` writes `assets/figures/`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from PIL import Image

from nestar.data import tiny_worlds
from nestar.data.pools import HELD_OUT_SEED
from nestar.images import to_pil
from nestar.pipeline import NestARPipeline

FIGURES = Path(__file__).parents[1] / "assets" / "figures"
GROWTH_CLASSES = ("lighthouse", "fish", "flower")


def modules_figure(pipeline: NestARPipeline, file: Path) -> None:
    """A row a class: what stands after each module at k = 4, and the token map beside it."""
    nesting = pipeline.plan(4)
    columns = len(nesting.scales)
    figure, axes = plt.subplots(
        len(GROWTH_CLASSES) + 1, columns, figsize=(2.1 * columns, 2.15 * (len(GROWTH_CLASSES) + 1))
    )
    for column, scale in enumerate(nesting.scales):
        made = torch.zeros(nesting.height, nesting.width)
        for earlier in nesting.scales[: column + 1]:
            for patch in earlier.generated:
                for place in nesting.flat[patch.start : patch.stop]:
                    made[place // nesting.width, place % nesting.width] = earlier.number
        axes[0, column].imshow(made, cmap="YlGnBu", vmin=0, vmax=columns, interpolation="nearest")
        axes[0, column].set_title(f"module {scale.number}: {scale.tokens} tokens", fontsize=9)
    for row, name in enumerate(GROWTH_CLASSES, 1):
        frames = [frame for frame in pipeline.stream(name, k=4, seed=row) if frame.module_done]
        for column, frame in enumerate(frames):
            axes[row, column].imshow(frame.image)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.tight_layout(pad=0.4)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def samples_sheet(pipeline: NestARPipeline, file: Path, each: int = 4) -> None:
    """A row a class: held-out Tiny Worlds on the left, samples of the embedded k = 4 on the right."""
    size, gap = 128, 12
    names = pipeline.classes
    sheet = Image.new("RGB", (2 * each * size + gap, len(names) * size), "white")
    ids, seeds = tiny_worlds.draw_indices(0, each * len(names), HELD_OUT_SEED)
    for row, name in enumerate(names):
        own = ids == tiny_worlds.CLASSES.index(name)
        drawn = to_pil(tiny_worlds.draw(ids[own], seeds[own], size).images)
        sampled = pipeline(name, k=4, seed=100, count=each).images
        for column, image in enumerate(drawn):
            sheet.paste(image, (column * size, row * size))
        for column, image in enumerate(sampled):
            sheet.paste(image, ((each + column) * size + gap, row * size))
    sheet.save(file, quality=90)


def main() -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    pipeline = NestARPipeline.from_pretrained(device="auto")
    modules_figure(pipeline, FIGURES / "modules.png")
    samples_sheet(pipeline, FIGURES / "samples.jpg")


if __name__ == "__main__":
    main()
