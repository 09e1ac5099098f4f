"""Your own data sets: what is checked, and the config that is written; and the generated data sets of shapes."""
