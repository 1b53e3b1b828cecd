"""A tokenizer is trained on a text of the user's and can be used at once."""

from pathlib import Path

import pytest

from weft.cli.tokenizer import tokenizer, train
from weft.data.tokenizer import open_tokenizer
from weft.errors import ConfigError


def test_a_trained_tokenizer_writes_any_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("warp and weft and warp " * 50)
    train(tmp_path / "new" / "t.json", source="text", path=str(tmp_path / "a.txt"), vocab=270)
    tokenizer()
    opened = open_tokenizer(str(tmp_path / "new" / "t.json"))
    text = "weft, \u00e9 and 42"
    assert opened.decode(opened.encode([text.encode()])[0].tolist()) == text
    assert f"{opened.size:,} ids" in capsys.readouterr().out


def test_tokens_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tokens already"):
        train(tmp_path / "t.json", source="prepared", path="a")
