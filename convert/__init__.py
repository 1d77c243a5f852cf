"""Weights: official PyTorch files to checkpoint directories and back.

May import everything in `instancevg_jax` above `evaluation`; only the predictor imports it, lazily."""
