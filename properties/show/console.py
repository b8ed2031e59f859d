"""Where the command prints."""

from rich import console


class Console(console.Console):
    """A console of rich's, which does not take a reader that has seen enough, as `head`, for a failure."""

    def on_broken_pipe(self) -> None:
        """Raise what rich caught: the command ends as others do whose output is closed."""
        raise BrokenPipeError
