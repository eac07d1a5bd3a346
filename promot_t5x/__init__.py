"""ProMoT: two-stage fine-tuning of (m)T5 that keeps its in-context learning (arXiv 2211.00635)."""

import os

# TensorFlow only reads data here; its start-up notices about GPUs and oneDNN would stand above every run's own lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.1.0"
