"""The experiments that the paper suggests: `python -m nestar experiment NAME`.

Each lives in the module of its name, as `EXPERIMENT`: what it measures, what it finds and what its figure
shows. `study` holds what they share: weights, references, finished rows, the clock.
"""

QUESTIONS = {
    "coordination": "Does the coordination loss bring neighbouring velocities together, and does FID follow?",
    "scaling": "How do FID and inception score stand against latency for k = 2, 4, 8, n, one-shot flow "
    "and cells?",
    "independence": "Do modules make better pictures when trained alone, together, or alone and then "
    "together?",
    "order": "Does the lattice or the raster order of tokens make better pictures at k = 4?",
    "sampler": "Which steps, solver, guidance, schedule and temperature sample best, and what do they cost?",
    "precision": "What moves precision, and what closes its gap to drawn pictures: guidance, schedule, "
    "temperature, context noise or k?",
    "baseline": "Does module 1, trained alone, learn its own tokens?",
    "modules": "Which module loses what separates samples from drawn pictures?",
}
"""What each of them asks, by its name."""

NAMES = tuple(QUESTIONS)
