"""How much callers have used of what they may in a day; see :class:`service.store.port.Usage`."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from service.store.database import Database
from service.store.port import Spent
from service.store.schema import USAGE

DAY_S: Final = 86_400
"""Seconds of a day, which begins with the first use."""
_MOST: Final = (1 << 63) - 1  # that a column holds


class MemoryUsage:
    """What was used, until the process ends."""

    def __init__(self) -> None:
        self._spent: dict[str, Spent] = {}

    async def spent(self, caller: str, now: float) -> Spent:
        """What a caller has used."""
        found = self._spent.get(caller)
        return Spent(0, now) if found is None or found.began <= now - DAY_S else found

    async def spend(self, caller: str, amount: int, quota: int, now: float) -> Spent | None:
        """Use something, if there is enough."""
        before = await self.spent(caller, now)
        if before.used > quota - amount:
            return None
        self._spent[caller] = Spent(before.used + amount, before.began)
        return self._spent[caller]

    async def give_back(self, caller: str, amount: int, began: float) -> None:
        """Undo a use."""
        found = self._spent.get(caller)
        if found is not None and found.began == began:
            self._spent[caller] = Spent(found.used - amount, began)


class SqlUsage:
    """What was used, in a database: processes that share it count together.

    Args:
        database: Closed by who opened it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def spent(self, caller: str, now: float) -> Spent:
        """What a caller has used."""
        query = sa.select(USAGE.c.used, USAGE.c.began).where(USAGE.c.caller == caller, USAGE.c.began > now - DAY_S)
        async with self._database.read() as connection:
            found = (await connection.execute(query)).first()
        return Spent(0, now) if found is None else Spent(found.used, found.began)

    async def spend(self, caller: str, amount: int, quota: int, now: float) -> Spent | None:
        """Use something, if there is enough: one statement, so that no two uses are both the last that fits."""
        left = min(quota, _MOST) - amount
        if left < 0:
            return None
        insert = postgresql.insert(USAGE) if self._database.postgres else sqlite.insert(USAGE)
        new, over = insert.excluded, USAGE.c.began <= now - DAY_S
        upsert = (
            insert.values(caller=caller, began=now, used=amount)
            .on_conflict_do_update(
                index_elements=[USAGE.c.caller],
                set_={
                    "used": sa.case((over, new.used), else_=USAGE.c.used + new.used),
                    "began": sa.case((over, new.began), else_=USAGE.c.began),
                },
                where=sa.or_(over, USAGE.c.used <= left),
            )
            .returning(USAGE.c.used, USAGE.c.began)
        )
        async with self._database.write() as connection:
            found = (await connection.execute(upsert)).first()
        return None if found is None else Spent(found.used, found.began)

    async def give_back(self, caller: str, amount: int, began: float) -> None:
        """Undo a use."""
        update = sa.update(USAGE).where(USAGE.c.caller == caller, USAGE.c.began == began)
        async with self._database.write() as connection:
            await connection.execute(update.values(used=USAGE.c.used - amount))
