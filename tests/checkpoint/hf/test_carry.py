"""The tokenizer and the meaningless keys of a run's first checkpoint go along with its weights."""

import json

import pytest

from weft.checkpoint.hf.carry import SETTINGS, TOKENIZER, carried_files, carried_keys


def refuse(message):
    raise AssertionError(message)


@pytest.fixture
def first(tmp_path):
    folder = tmp_path / "first"
    folder.mkdir()
    for name in (TOKENIZER, SETTINGS, "chat_template.jinja", "generation_config.json", "odd.txt"):
        (folder / name).write_text("{}")
    config = {"eos_token_id": 7, "hidden_size": 9, "torch_dtype": "float16", "own_key": [1]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def recipe(tokenizer, start=None):
    return {"data": {"tokenizer": str(tokenizer)}, "train": {"init_from": start and str(start)}}


def test_all_files_of_the_tokenizer_and_no_others_go_along(first):
    found = carried_files(recipe(first / TOKENIZER, first), report=refuse)
    names = {TOKENIZER, SETTINGS, "chat_template.jinja", "generation_config.json"}
    assert found == {name: first / name for name in names}


def test_a_tokenizer_of_another_name_gets_the_one_that_is_looked_for(first, tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    found = carried_files(recipe(tmp_path / "mine.json"), report=refuse)
    assert found == {TOKENIZER: tmp_path / "mine.json"}


def test_what_is_gone_and_what_never_was_is_reported(tmp_path):
    told = []
    assert carried_files(recipe(tmp_path / "gone.json"), report=told.append) == {}
    assert carried_files(recipe("bytes"), report=told.append) == {}
    assert carried_keys(recipe("bytes", tmp_path / "no"), {}, report=told.append) == {}
    assert [
        word in text for word, text in zip(("is gone", "bytes", "cannot be"), told, strict=True)
    ]


def test_keys_of_the_first_file_stand_where_the_model_says_nothing(first):
    written = {"hidden_size": 8, "eos_token_id": None}
    del written["eos_token_id"]
    found = carried_keys(recipe("bytes", first), written, report=refuse)
    assert found == {"eos_token_id": 7, "own_key": [1]}
