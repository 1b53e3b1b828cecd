"""A corpus is prepared from flags or from a recipe, and checked; what is no text is refused."""

import json
from pathlib import Path

import pytest

from weft.cli.data import described, prepare, verify
from weft.data.prepared.manifest import read_manifest
from weft.errors import ConfigError, DataError

RECIPE = """
name = "r"
[model]
preset = "tiny-mixtral"
[data]
source = "jsonl"
path = "PATH"
sequence = 16
[optim]
lr = 1e-3
warmup_steps = 1
[train]
steps = 1
global_batch = 1
micro_batch = 1
eval_every = 1
checkpoint_every = 0
"""


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(9)))
    return path


def test_flags_describe_a_corpus_that_is_prepared_and_verified(
    tmp_path: Path, lines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path / "out", source="jsonl", path=str(lines), workers=1)
    said = capsys.readouterr().out
    assert 'data.source = "prepared"' in said
    assert "model.vocab = 257 or more" in said
    assert read_manifest(tmp_path / "out").shards[0].num_documents == 9
    verify(tmp_path / "out")
    assert "1 shards of 63 tokens are whole" in capsys.readouterr().out


def test_a_recipe_describes_a_corpus_and_flags_go_before_it(tmp_path: Path, lines: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.replace("PATH", str(lines)))
    assert described(str(recipe), [], {}).path == str(lines)
    assert described(str(recipe), ["data.on_bad=skip"], {}).on_bad == "skip"
    assert described(str(recipe), [], {"path": "elsewhere"}).path == "elsewhere"


def test_what_says_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--source: missing"):
        described(None, [], {"path": "a"})
    with pytest.raises(DataError, match="--set needs a recipe"):
        described(None, ["data.path=b"], {"source": "text"})
    with pytest.raises(ConfigError, match="not one text"):
        prepare(tmp_path / "out", source="prepared", path="a")
    with pytest.raises(ConfigError, match="data.source"):
        prepare(tmp_path / "out", source="jsnl", path="a")
