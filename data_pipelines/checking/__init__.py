"""What can be wrong with annotations and pictures, and repairs.

May import `records`, `masks`, `annotations`, and `inputs` of `instancevg_jax`."""
