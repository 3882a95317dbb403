"""What an error ends the command with, the same on one process and on several."""

import errno

from mmx.core import storage
from mmx.core.errors import EXIT_BAD_INPUT, EXIT_FAULT, Unavailable, UserError

# What a disk or a path of the user's may answer; any other OSError is a fault of ours.
_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO,
}  # fmt: skip


def told(error: Exception) -> tuple[int, str] | None:
    """The exit code and the one line of an error; None: a fault, which deserves its traceback."""
    if isinstance(error, UserError):
        return EXIT_FAULT if isinstance(error, Unavailable) else EXIT_BAD_INPUT, str(error)
    code = EXIT_FAULT if storage.is_transient(error) else EXIT_BAD_INPUT
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno not in _DISK:
            return None
        return code, f"{error.filename or 'output'}: {error.strerror}"
    reason = storage.explain(error)
    return (code, f"the bucket cannot be read ({reason})") if reason else None
