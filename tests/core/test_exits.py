"""Exit codes of errors: what a user mends, what may pass, and what is a fault."""

import errno

import pytest

from mmx.core import exits
from mmx.core.errors import Unavailable, UserError


class Refused(Exception):
    """As gcsfs raises them."""


Refused.__module__ = "gcsfs.retry"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("x"), (2, "x")),
        (Unavailable("x"), (70, "x")),
        (OSError(errno.ENOSPC, "full", "a.txt"), (2, "a.txt: full")),
        (OSError(errno.EIO, "broken", "a.txt"), (70, "a.txt: broken")),
        (OSError(errno.EBADF, "bad"), None),
        (Refused("no"), (2, "the bucket cannot be read (Refused: no)")),
        (TimeoutError(), (70, "the bucket cannot be read (no answer in time)")),
        (
            ValueError("PERMISSION_DENIED"),
            (2, "the bucket cannot be read (ValueError: PERMISSION_DENIED)"),
        ),
        (ValueError("x"), None),
    ],
)
def test_told(error, told):
    assert exits.told(error) == told
