"""The command line: verbs, thin. Whatever they do, the Python API does too."""


def main() -> None:
    """The `fedsdr` command."""
    from fedsdr.cli.app import app  # so that a program may use cli.progress without typer

    app()
