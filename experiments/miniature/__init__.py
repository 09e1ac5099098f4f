"""The paper's table in miniature; ``tools/quickstart.py`` is the command."""
