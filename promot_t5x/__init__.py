"""ProMoT: two-stage fine-tuning of (m)T5 that keeps its in-context learning (arXiv 2211.00635)."""

__version__ = "0.1.0"
