"""The wire of /v1: what requests may hold, with every bound, and what answers hold."""
