"""Data sets on disk that are ready for training: TFDS builders that write them, sources that read them.

May import `records`, `annotations`, `checking`, and `inputs` of `instancevg_jax`."""
