"""Mistakes that a user can mend. Everything else is a bug of ours and keeps its traceback."""


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
