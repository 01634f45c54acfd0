"""`python -m nestar`: sample, train and evaluate from the command line."""

from __future__ import annotations

import sys

from nestar.cli import main

sys.exit(main())
