"""One config file per family of data sets; each defines `get_config` and lists what differs from the defaults in `Config`.

May import `instancevg_jax.config`."""
