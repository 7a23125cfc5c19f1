"""A command run inside the test process."""

from typer.testing import CliRunner, Result

from truthheads.cli import app


def run(*words: object) -> Result:
    """Run ``truthheads WORDS`` and return its result; an error that is not an exit is raised."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="truthheads")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
