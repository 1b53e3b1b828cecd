"""The matrix on paper: a line a row, a culprit under it, a summary, JSON, an exit code."""

import json

import pytest
from typer.testing import CliRunner

from weft.cli.main import app
from weft.cli.matrix import prove_matrix
from weft.errors import ConfigError
from weft.testing.matrix import prove


def proved(capsys: pytest.CaptureFixture[str], **options: object) -> tuple[bool, str]:
    plain = {"sabotage": "", "only": "capacity: cp2", "quick": True, "as_json": False}
    holds = prove_matrix(**{**plain, **options})  # type: ignore[arg-type]
    return holds, capsys.readouterr().out


def test_a_row_that_cannot_exist_is_one_line_with_its_rule(capsys) -> None:
    holds, text = proved(capsys)
    assert holds
    assert "none  capacity: cp2 ep2" in text
    assert "model.capacity = 1.0: must be 0" in text
    assert "0 rows stacked, 0 over gloo, 1 that cannot exist; 0 checks" in text


def test_json_is_one_value_with_every_row(capsys) -> None:
    holds, text = proved(capsys, as_json=True)
    found = json.loads(text)
    assert holds is found["holds"] is True
    assert [row["layout"] for row in found["rows"]] == ["capacity: cp2 ep2"]


def test_no_row_is_no_proof(capsys) -> None:
    assert not proved(capsys, only="sp77")[0]


def test_a_fault_is_named_under_its_row_and_in_the_summary(capsys, monkeypatch) -> None:
    def broken(matrix: prove.Matrix, rows) -> list[prove.Verdict]:
        fault = prove.Check(name="grads64", figure="1e-2", fault="layers.0.q is off by 0.01")
        return [prove.Verdict(row=row, ranks=2, checks=(fault,)) for row in rows]

    monkeypatch.setattr(prove, "prove_all", broken)
    holds, text = proved(capsys)
    assert not holds
    assert "      grads64: layers.0.q is off by 0.01" in text
    assert text.splitlines()[-1].endswith(
        "1 FAIL; first: capacity: cp2 ep2, grads64: layers.0.q is off by 0.01"
    )


@pytest.mark.parametrize(
    "arguments", [["verify"], ["verify", "x.toml", "--matrix"], ["verify", "--json"]]
)
def test_a_recipe_and_the_matrix_exclude_each_other(arguments: list[str]) -> None:
    answer = CliRunner().invoke(app, arguments)
    assert isinstance(answer.exception, ConfigError)
