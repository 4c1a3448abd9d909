"""For all tests: no service that they start, in this process or another, keeps jobs in the user's own folders."""

import os

os.environ["SUPERDIFF_DATABASE"] = "memory:"
