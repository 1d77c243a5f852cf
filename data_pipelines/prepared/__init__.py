"""Data sets on disk that are ready for training: TFDS builders that write them, sources that read them.

May import `records` and `annotations`."""
