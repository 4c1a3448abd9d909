"""What can go wrong with jobs that are kept."""


class IdempotencyError(Exception):
    """A key that stands for another request."""


class MovedError(Exception):
    """The job goes on elsewhere: in another process, or in this one after a restart."""


class EarlierFailureError(Exception):
    """Why a job failed, as it was written down.

    Attributes:
        status: The HTTP status of the fault.
    """

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


class LostFileError(Exception):
    """A file of a job is not there any more, or damaged."""
