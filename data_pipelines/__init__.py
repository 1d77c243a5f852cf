"""From annotation files and pictures to batches.

May import the ground floor, `runtime` and `inputs` of `instancevg_jax`; knows no model."""
