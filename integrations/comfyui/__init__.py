"""Superdiff for ComfyUI: nodes that have a running superdiff-serve compose, inpaint and explain pictures."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
