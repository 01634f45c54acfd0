"""What an experiment takes unless the command line says otherwise; light enough for its --help."""

from pathlib import Path

from nestar import files

SAMPLES = 1000
"""Of a grid's or search's rows."""
FINAL_SAMPLES = 5000
"""Of the finalists."""
MEMBER = "k4-lattice"
"""The nesting that experiments on a single one take."""
PRESET = "tiny-worlds-k4"
"""The recipe that training arms are made from."""
IMAGES = 200_000
"""Each training arm sees."""
RESULTS = Path("benchmarks/results/experiments")
RUNS = files.RUNS / "experiments"
