"""The page at ``/``: static files and the route that serves them; the page talks to the native API alone."""
