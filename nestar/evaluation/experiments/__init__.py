"""The experiments that the paper suggests: `python -m nestar experiment NAME`.

Each lives in the module of its name, as `EXPERIMENT`: what it asks, what it measures, what it finds and what
its figure shows. `study` holds what they share: weights, references, finished rows, the clock.
"""

NAMES = (
    "coordination",
    "scaling",
    "independence",
    "order",
    "sampler",
    "precision",
    "baseline",
    "modules",
)
