"""A generated data set of textured shapes, for every task."""
