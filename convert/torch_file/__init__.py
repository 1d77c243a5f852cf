"""Files that torch writes, read and written without torch.

May import the ground floor of `instancevg_jax` only."""
