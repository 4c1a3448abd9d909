"""Model families: how each kind of checkpoint becomes a :class:`pipelines.model.Model`.

One file a family. These files alone import diffusers and transformers; they know nothing of sampling.
"""

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

# What these libraries say while they load is for their developers: bars for every part, hints to install torchvision.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
