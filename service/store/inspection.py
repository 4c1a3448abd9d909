"""What a database holds, for who looks at it from outside: nothing is made, migrated or locked for others."""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from service.store.database import opened_to_read, version_of
from service.store.port import StoreError, StoreUnavailableError
from service.store.records import JobState
from service.store.schema import JOBS, VERSIONS


@dataclass(frozen=True, slots=True)
class Inspection:
    """A database as it is.

    Attributes:
        version: The last step of the migrations that it has; None where it has no tables yet.
        jobs: How many there are in each state; none where the version is not known.
    """

    version: str | None
    jobs: Mapping[JobState, int]

    @property
    def known(self) -> bool:
        """Whether this version of the program can read it, or bring it up to date."""
        return self.version is None or self.version in VERSIONS


async def inspect(url: str) -> Inspection | None:
    """Look at a database; None where a SQLite file is not there.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://…``.

    Raises:
        StoreError: It cannot be read; one line that says why, without the address's password.
    """
    try:
        async with opened_to_read(url) as connection:
            if connection is None:
                return None
            version = await connection.run_sync(version_of)
            if version not in VERSIONS:
                return Inspection(version, {})
            counted = sa.select(JOBS.c.state, sa.func.count()).group_by(JOBS.c.state)
            found = {JobState(state): count for state, count in await connection.execute(counted)}
            return Inspection(version, {state: found[state] for state in JobState if state in found})
    except StoreUnavailableError as error:
        raise StoreUnavailableError(f"it cannot be reached: {_line(error.__cause__)}") from error
    except DBAPIError as error:
        raise StoreError(f"it cannot be read: {_line(error)}") from error


def _line(error: BaseException | None) -> str:
    """What the driver says, in one line."""
    told = str(getattr(error, "orig", None) or error).strip()
    return told.splitlines()[0] if told else type(error).__name__
