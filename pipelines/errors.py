"""What can go wrong in the science.

    PipelineError
    ├── InvalidInputError        the caller asked for something that has no meaning; names the field
    ├── UnknownModelError        no model of that name in the catalogue
    ├── IncompatibleModelsError  models that do not share a data space cannot be composed
    ├── CatalogError             the catalogue file itself is wrong
    ├── ModelLoadError           a model's files are missing, truncated or of the wrong kind: it stays so until mended
    │   └── ModelUnavailableError    it cannot be loaded now, for want of memory or of the hub; later it may be
    └── NonFiniteError           sampling left the finite numbers

Every message is written for the user who can mend the cause.
"""


class PipelineError(Exception):
    """The root of everything that this package raises on purpose."""


class InvalidInputError(PipelineError):
    """A value without meaning.

    Args:
        detail: What is wrong and what is allowed.
        field: Where it stands, as a path of keys and indices into the request, outermost first.
    """

    def __init__(self, detail: str, *, field: tuple[str | int, ...]) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


class UnknownModelError(PipelineError):
    """A model that the catalogue does not hold.

    Args:
        name: What was asked for.
        known: What there is.
        field: Where it stands in the request; empty where it stands in none.
    """

    def __init__(self, name: str, known: tuple[str, ...], *, field: tuple[str | int, ...] = ()) -> None:
        super().__init__(f"no model named {name!r}; the catalogue holds {', '.join(known) or 'no models'}")
        self.name = name
        self.known = known
        self.field = field


class IncompatibleModelsError(PipelineError):
    """Models whose samples live in different spaces, so that their densities cannot be compared."""

    def __init__(self, spaces: dict[str, str]) -> None:
        told = "; ".join(f"{name}: {space}" for name, space in spaces.items())
        super().__init__(f"these models do not share a data space and cannot be composed ({told})")
        self.spaces = spaces


class CatalogError(PipelineError):
    """A catalogue that cannot be read, or an entry in it that makes no sense."""


class ModelLoadError(PipelineError):
    """A model or a LoRA that cannot be loaded until somebody mends it; names it and the file or folder at fault."""


class ModelUnavailableError(ModelLoadError):
    """A model that cannot be loaded now but may be later: there is too little memory, or the hub cannot be reached."""


class NonFiniteError(PipelineError):
    """A sample that overflowed or became NaN."""
