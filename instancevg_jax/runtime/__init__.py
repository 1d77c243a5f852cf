"""How a command meets its surroundings: flags, console, devices and version.

May import the ground floor (the modules directly in `instancevg_jax` that are not commands)."""
