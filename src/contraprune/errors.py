"""What ends a run early: the exceptions that are the user's to fix, or to cause."""


class UserError(ValueError):
    """Bad input: a file, a flag or a model that cannot be used.

    The message is one line that names the file or flag, what was expected and what was found. The command
    line prints it alone and exits with code 2; from Python it is an ordinary ``ValueError``.
    """


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the state of the run was saved; the message says where it stands."""
