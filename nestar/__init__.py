"""NestAR: an open implementation of Nested AutoRegressive Models (arXiv 2510.23028)."""

__version__ = "0.1.0"
