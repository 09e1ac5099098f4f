"""The paper's table: in miniature on a CPU, and in full."""
