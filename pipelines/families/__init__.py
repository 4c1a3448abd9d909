"""Model families: how each kind of checkpoint becomes a :class:`pipelines.model.Model`.

Each family is one file. Only these files import diffusers and transformers, and they do not depend on the sampler.
"""
