"""The command line, the console, devices, the compilation cache and the version.

May import the ground floor (the modules directly in `instancevg_jax` that are not commands)."""
