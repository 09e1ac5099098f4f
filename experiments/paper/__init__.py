"""Fills the paper's table: what has to be run, whether it can be run here, running it, and reading off the results.

rows.py (what is published) -> recipes.py (configs, batches, costs) -> settings.py (what was asked for) -> commands.py
(a plan of stages) -> checks.py -> experiments/engine.py or experiments/slurm.py -> table.py. ``tools/reproduce.py`` is
the command.
"""
