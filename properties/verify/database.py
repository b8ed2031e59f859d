"""The cache of failing cases: Hypothesis' own databases, whose errors cost nothing but the cache."""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from hypothesis.database import (
    BackgroundWriteDatabase,
    DirectoryBasedExampleDatabase,
    ExampleDatabase,
    MultiplexedDatabase,
)

from ..names import STEP
from .arguments import without_password
from .certifier import Check

LOCAL = Path("build/examples")
"""The folder beside a Redis."""
PATIENCE_SECONDS = 2.0
"""How long Redis may take to answer."""

T = TypeVar("T")


def open_database(text: str, say: Callable[[str], None]) -> ExampleDatabase:
    """Open a database of failing cases.

    Args:
        text: a folder, or redis://HOST[:PORT]/DB, which is multiplexed over the folder `LOCAL` and written in
            the background. `check_database` has let it pass.
        say: told once of each database that fails; it is not used after that.
    """
    if "://" not in text:
        return Forgiving(DirectoryBasedExampleDatabase(text), f"database {text}", say)
    from hypothesis.extra.redis import RedisExampleDatabase
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    times = {"socket_timeout": PATIENCE_SECONDS, "socket_connect_timeout": PATIENCE_SECONDS}
    shared = RedisExampleDatabase(Redis.from_url(text, retry=Retry(NoBackoff(), 0), **times))
    local = Forgiving(DirectoryBasedExampleDatabase(LOCAL), f"database {LOCAL}", say)
    # inside what writes in the background: an error would end its thread, and each fetch would wait for ever
    guarded = Forgiving(shared, f"database {without_password(text)}", say)
    return MultiplexedDatabase(local, BackgroundWriteDatabase(guarded))


def of_check(database: ExampleDatabase, check: Any) -> ExampleDatabase:
    """Return the part of a database that is a check's: of its target, contract, law and world."""
    contract = check.contract.name if isinstance(check, Check) else STEP
    where = check.subject.target, contract, check.law.name, check.world.name
    return Keyed(database, "\n".join([*where, ""]).encode())


class Keyed(ExampleDatabase):
    """Part of a database.

    Hypothesis' key is the source of the test function, which all checks share.
    """

    def __init__(self, database: ExampleDatabase, prefix: bytes) -> None:
        super().__init__()
        self.database = database
        self.prefix = prefix

    def fetch(self, key: bytes) -> Iterable[bytes]:
        """Return what was saved under a key."""
        return self.database.fetch(self._own(key))

    def save(self, key: bytes, value: bytes) -> None:
        """Keep a case."""
        self.database.save(self._own(key), value)

    def delete(self, key: bytes, value: bytes) -> None:
        """Forget a case."""
        self.database.delete(self._own(key), value)

    def move(self, src: bytes, dest: bytes, value: bytes) -> None:
        """Keep a case under another key."""
        self.database.move(self._own(src), self._own(dest), value)

    def _own(self, key: bytes) -> bytes:
        return self.prefix + key


class Forgiving(ExampleDatabase):
    """A database that is not used any more once it has failed.

    Args:
        database: the one that may fail.
        name: its name in what is said.
        say: told of the first error.
    """

    def __init__(self, database: ExampleDatabase, name: str, say: Callable[[str], None]) -> None:
        super().__init__()
        self.database = database
        self.name = name
        self.say = say
        self._lock = threading.Lock()
        self._failed = False

    def fetch(self, key: bytes) -> Iterable[bytes]:
        """Return what was saved under a key; nothing, if it fails."""
        return self._try(lambda: list(self.database.fetch(key))) or []

    def save(self, key: bytes, value: bytes) -> None:
        """Keep a case."""
        self._try(lambda: self.database.save(key, value))

    def delete(self, key: bytes, value: bytes) -> None:
        """Forget a case."""
        self._try(lambda: self.database.delete(key, value))

    def move(self, src: bytes, dest: bytes, value: bytes) -> None:
        """Keep a case under another key."""
        self._try(lambda: self.database.move(src, dest, value))

    def _try(self, act: Callable[[], T]) -> T | None:
        if self._failed:
            return None
        try:
            return act()
        except Exception as error:  # whatever it is, the cache alone is lost
            with self._lock:
                first, self._failed = not self._failed, True
            if first:
                self.say(f"{self.name}: not used any more: {type(error).__name__}: {error}")
            return None
