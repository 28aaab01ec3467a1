"""Uploads whose bytes are under way: no more at once than are allowed, of all users and of each."""

from collections import Counter
from dataclasses import dataclass, field

from intermission.supervisor.errors import CrowdedError


@dataclass(slots=True)
class Crowd:
    """See the module. A place is taken before anything is awaited: else many would find the same one free."""

    most: int
    most_of_user: int
    _of_user: Counter[str] = field(default_factory=Counter)

    def check(self, user: str) -> None:
        """Raise `CrowdedError` if there is no place for this user now."""
        if self._of_user.total() >= self.most:
            raise CrowdedError(None, self.most)
        if self._of_user[user] >= self.most_of_user:
            raise CrowdedError(user, self.most_of_user)

    def enter(self, user: str) -> None:
        """Take a place. Raises as `check`."""
        self.check(user)
        self._of_user[user] += 1

    def leave(self, user: str) -> None:
        """Give it back."""
        self._of_user[user] -= 1
        if not self._of_user[user]:
            del self._of_user[user]
