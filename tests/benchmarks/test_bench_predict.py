"""What a file has is not measured again, and every configuration can be laid out."""

import json

import bench_predict as bench
import pytest
from measurement import TINY


def test_what_a_file_has_is_known(tmp_path) -> None:
    file = tmp_path / "predict.jsonl"
    assert bench.measured(file) == set()
    file.write_text("".join(json.dumps({"name": name}) + "\n" for name in ("Q one", "M one")))
    assert bench.measured(file) == {"Q one", "M one"}


@pytest.mark.parametrize("name", bench.CONFIGURATIONS)
def test_a_configuration_takes_the_gpus_that_its_name_says(name) -> None:
    for settings in ((), TINY):
        assert bench.recipe(name, settings).parallel.ranks == (1 if " one" in name else 2)
    assert bench.recipe(name, TINY).train.device == "cpu"
