"""What can be wrong with annotations and pictures, repairs that keep what a record means, and drawings of annotations.

May import `records`, `masks`, `annotations`, and `inputs` of `instancevg_jax`."""
