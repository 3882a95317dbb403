"""Errors that a user can mend: the command prints them as one line and exits with code 2."""


class UserError(Exception):
    """Something the user gave is wrong; the message names the field, the value and what to do."""
