"""Model families: how each kind of checkpoint becomes a :class:`pipelines.model.Model`.

One file a family. These files alone import diffusers and transformers; they know nothing of sampling.
"""
