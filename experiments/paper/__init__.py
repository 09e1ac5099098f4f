"""Fills the paper's table: what has to be run, whether it can be run here, running it, and reading off the results.

rows.py (what is published) -> recipes.py (configs, batches, costs) -> settings.py (what was asked for) -> plan.py,
stages.py (commands) -> checks.py -> local_run.py or slurm.py -> table.py. ``tools/reproduce.py`` is the command.
"""
