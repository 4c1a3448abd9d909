"""Keeping jobs: what was accepted is done, whatever becomes of the process that accepted it."""
