"""The parts of a training run: step, optimizer, saved states and log.

May import `data_pipelines` and every room but the commands."""
