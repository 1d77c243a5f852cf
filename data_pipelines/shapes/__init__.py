"""The embedded data set: scenes of drawn shapes and sentences about them, made from an index.

May import `records` and `transforms`, and `inputs` of `instancevg_jax`."""
