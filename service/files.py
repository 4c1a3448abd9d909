"""The pictures of a finished job as files, which say how they are drawn again."""

from service.engine.job import Outcome
from service.metadata import chunk, recipe
from service.pictures import ImageFormat, encode_picture
from service.registry import Record


def encoded(record: Record, outcome: Outcome, image_format: ImageFormat) -> list[bytes]:
    """The pictures of an outcome, encoded. Neither for the event loop's thread nor for the device's."""
    return [encoded_picture(record, outcome, i, image_format) for i in range(len(outcome.pictures))]


def encoded_picture(record: Record, outcome: Outcome, image: int, image_format: ImageFormat) -> bytes:
    """One picture of an outcome, encoded; a PNG says how it is drawn again. See :func:`encoded`."""
    pixels = outcome.pictures[image]
    quality = record.rendering.quality if image_format is record.rendering.image_format else None
    return encode_picture(pixels, image_format, told(record, image, pixels.shape[1::-1]), quality)


def told(record: Record, image: int, size: tuple[int, ...]) -> dict[str, str]:
    """What the file of a picture says of itself: text chunks of a PNG; nothing where it could not be drawn again.

    Args:
        record: The job.
        image: Which of its pictures.
        size: Of the picture, (width, height).
    """
    plan, origin = record.job.plan, record.rendering.origin
    if origin is None:
        return chunk(recipe(plan, image))
    if origin.image_sha256 is None:
        return {}
    # A picture that began from another may be smaller than what was sampled for it.
    width, height = size
    return chunk(recipe(plan, image, (width, height), origin))
