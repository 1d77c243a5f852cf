"""The parts of a training run: plan, loop, step, optimizer, saved states, log, and the models it publishes.

May import `data_pipelines` and every room but the commands."""
