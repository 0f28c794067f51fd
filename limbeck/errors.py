"""Mistakes that a user can mend. Everything else is a bug of ours and keeps its traceback."""

from __future__ import annotations

import errno
import re

FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
SAYS_FULL = re.compile(r"No space left|File too large|Disk quota exceeded|os error (28|27|122)\b")
CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}


class UserError(Exception):
    """One line that says where, what and the way out; the command line exits with 2.

    `where` names a file and key (or a folder), `what` the mistake, `way_out` what to do about it.
    """

    def __init__(self, where: str, what: str, way_out: str):
        super().__init__(f"{where}: {what}; {way_out}")
        self.where, self.what, self.way_out = where, what, way_out


class UserErrors(Exception):
    """Several mistakes found at once, by `limbeck plan` for instance; one line each."""

    def __init__(self, errors: list[UserError]):
        super().__init__("\n".join(str(error) for error in errors))
        self.errors = errors


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error, whichever library's words it comes in."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or SAYS_FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_closed(error: BaseException) -> bool:
    """Whether a file or folder may not be read or written."""
    return isinstance(error, OSError) and error.errno in CLOSED
