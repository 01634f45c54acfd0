"""`python -m benchmarks.readme`: write everything anew."""

from __future__ import annotations

from benchmarks.readme.writing import main

main()
