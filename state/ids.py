"""Ids of tasks: UUID version 7, so that their order is the order of their making."""

import sys

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils.compat import uuid7


def new_id() -> str:
    """A new id; greater than every earlier one of this process."""
    return str(uuid7())
