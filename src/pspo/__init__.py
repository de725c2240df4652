"""pspo: probability-smoothing policy optimisation for language models (arXiv 2509.21282), reproduced end to end.

Importing the package imports nothing else; the rooms and who may import whom are in docs/architecture.md.
"""

__version__ = "0.1.0"
