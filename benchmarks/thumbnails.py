"""Whether a class of Tiny Worlds is given away by colour: `python -m benchmarks.thumbnails` writes
`results/thumbnails.json`.

A multinomial logistic classifier learns the classes from thumbnails of 4 x 4 pixels, and names unseen ones.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from benchmarks.common import RESULTS, write_report
from nestar.data.tiny_worlds import CLASSES, draw, draw_indices

SIDE = 4
TRAINED_ON, TRIED_ON = 1500, 600
SEEDS = (10, 11)
DECAY = 1e-3


def thumbnails(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3 * SIDE * SIDE) and classes (N,)."""
    ids, seeds = draw_indices(0, count, seed)
    images = draw(ids, seeds, size=64).images
    return torch.nn.functional.adaptive_avg_pool2d(images, SIDE).flatten(1), ids


def accuracy() -> float:
    """Share of unseen thumbnails whose class the classifier names."""
    (x, y), (x_test, y_test) = thumbnails(TRAINED_ON, SEEDS[0]), thumbnails(TRIED_ON, SEEDS[1])
    mean, std = x.mean(0), x.std(0)
    x, x_test = (x - mean) / std, (x_test - mean) / std
    linear = torch.nn.Linear(x.shape[1], len(CLASSES))
    torch.nn.init.zeros_(linear.weight)
    optimiser = torch.optim.LBFGS(linear.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(linear(x), y) + DECAY * linear.weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return (linear(x_test).argmax(1) == y_test).float().mean().item()


def main() -> None:
    report = {"accuracy": round(accuracy(), 4), "pictures": TRIED_ON, "side": SIDE, "classes": len(CLASSES)}
    write_report(RESULTS / "thumbnails.json", report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
