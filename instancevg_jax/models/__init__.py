"""The network as Flax NNX modules: BEiT-3, instance queries, deformable decoder, pyramid and heads.

May import the ground floor of `instancevg_jax` only (`config`, `types`, `errors`, `boxes`)."""
