"""One config file per family of data sets; each defines `get_config`.

May import `instancevg_jax.config`."""
