"""Model families: how each kind of checkpoint becomes a :class:`pipelines.model.Model`.

Each family is one file. Only these files import diffusers and transformers, and they do not depend on the sampler.
"""

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

# While they load, these libraries print messages for developers: progress bars, hints to install torchvision.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
