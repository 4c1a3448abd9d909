"""The plug-in for Krita 5."""
