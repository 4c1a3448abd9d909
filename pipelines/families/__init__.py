"""Model families: how each kind of checkpoint becomes a :class:`pipelines.model.Model`.

Each family is one file. Only these files import diffusers and transformers, and they do not depend on the sampler.
"""

import os

# Read when transformers is imported, which prints hints to install torchvision otherwise. The family of exact mixtures
# needs neither library, so neither is imported here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
