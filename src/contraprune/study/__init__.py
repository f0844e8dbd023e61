"""Studies: the same pruning run many times, with parts taken away, densities or methods changed, over seeds."""
