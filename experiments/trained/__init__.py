"""Trainings of several backbones under one protocol; ``tools/compare.py`` puts them beside the probes."""
