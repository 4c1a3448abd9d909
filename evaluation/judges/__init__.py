"""Who says how pictures came out, independent of the networks that drew them."""
