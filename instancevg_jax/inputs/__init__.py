"""Turns pictures and sentences into arrays for the model: one path for training, evaluation and prediction.

May import the ground floor and `runtime`."""
