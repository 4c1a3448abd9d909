"""The Superdiff docker for Krita 5: what is selected is painted anew, or a picture fills the canvas, as a new layer.

`docker` is what is seen, `document` touches Krita's documents, `work` asks the service in a thread of its own. The rest
is plain Python that knows neither Krita nor Qt: `asking`, `geometry`, `pixels`, `png` and `client`.
"""

try:
    import krita
except ModuleNotFoundError:  # the plain part is also used, and tested, where there is no Krita
    pass
else:
    from .docker import register

    register(krita.Krita.instance())
