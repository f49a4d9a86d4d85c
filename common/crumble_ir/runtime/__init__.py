"""Functions in the dialect that compiled programs use."""
