from typer.testing import CliRunner

from weft.cli.main import app


def test_the_command_has_help_and_its_rows_can_be_asked_for_as_json():
    result = CliRunner().invoke(app, ["reproduce", "--help"])
    assert result.exit_code == 0
    assert "json" in result.output
