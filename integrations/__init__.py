"""Plug-ins of other programs that speak the native API. Each is built into a zip of its own; none is installed here."""
