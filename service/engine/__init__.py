"""The engine: many requests, one device thread, one network call per model and step."""
