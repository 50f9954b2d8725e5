"""The built-in checks: one file per check, one folder per family."""

OF_CHECKPOINTS = ("weights.alpha_outliers", "weights.finite_weights")
"""The checks that can judge a checkpoint, which import torch only where there is a live model."""
