"""How the pictures of a job are wanted."""

from dataclasses import dataclass

from service.metadata import Origin
from service.pictures import ImageFormat


@dataclass(frozen=True, slots=True)
class Rendering:
    """How a job's pictures are wanted, and what is remembered of the picture that it began from.

    Attributes:
        image_format: Of its pictures.
        by_url: Whether answers tell where to fetch pictures instead of holding them.
        quality: Of the pictures' encoding, as :func:`service.pictures.encode_picture` has it.
        task: What its caller calls the job, in a dialect in which callers name their jobs; None in others.
        label: How its client groups its jobs, if it does.
        origin: The picture that the job began from, if there is one.
    """

    image_format: ImageFormat = ImageFormat.PNG
    by_url: bool = False
    quality: int | None = None
    task: str | None = None
    label: str | None = None
    origin: Origin | None = None
