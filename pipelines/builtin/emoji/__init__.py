"""`emoji`: a world of things with names, in two styles; its data, recipe and card."""
