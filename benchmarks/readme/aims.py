"""What the project set out to reach, and whether a measured value does."""

from __future__ import annotations

TARGETS: dict[str, tuple[float, ...]] = {
    "class_accuracy_of_few": (0.90,),
    "recall_of_reference_of_few": (0.8,),
    "class_accuracy": (0.98,),
    "precision_of_reference": (0.9,),
    "recall_of_reference": (0.9,),
    "seams": (1.15,),
    "tokenizer_psnr": (28, 30),
    "rising": (0.95,),
    "worst_r2": (0.8,),
    "worst_accuracy": (0.9,),
    "told_by_colour": (0.8,),
    "first_module_seconds": (0.4, 0.12),
    "whole_picture_seconds": (1.5, 0.5),
    "memory_mib": (1536,),
    "errors": (0,),
    "light": (0.5,),
    "growth": (0.05,),
    "same": (0.99,),
    "autoregression_over_k4_at_64": (10,),
    "autoregression_over_k4_at_256": (30,),
    "autoregression_over_k4_at_1024": (100,),
    "one_shot_over_k4": (2.5,),
    "one_shot_over_k2": (4,),
    "share_of_matrix_rate": (0.35,),
    "streamed_over_not": (1.3,),
}
"""What the project set out to reach: the first value soon, the second in the end."""
AT_MOST = (
    "seams",
    "told_by_colour",
    "first_module_seconds",
    "whole_picture_seconds",
    "memory_mib",
    "errors",
    "light",
    "growth",
    "streamed_over_not",
)


MISSED = "**not reached**"
"""What `goal` says of a target that is missed."""


def goal(key: str, value: float, form: str = "g", unit: str = "") -> str:
    """The targets of a figure, and whether the measured value reaches each."""

    def judged(limit: float) -> str:
        lower = key in AT_MOST
        reached = value <= limit if lower else value >= limit
        return f"{'≤' if lower else '≥'} {limit:{form}}{unit}: {'reached' if reached else MISSED}"

    return "; ".join(judged(limit) for limit in TARGETS[key])
