"""A simulation of many workers that share one store of jobs, on a clock of its own."""
