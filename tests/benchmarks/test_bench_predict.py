"""What a file has is not measured again, and every configuration can be laid out."""

import json

import bench_predict as bench
import pytest
from measurement import TINY

from weft.config.load import dump


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


def test_a_record_is_foretold_with_its_own_attention_and_at_its_own_host(tmp_path) -> None:
    """Behind a stop for numbers the host is in the step: half as fast, the step is longer."""
    file, name = tmp_path / "predict.jsonl", "Q sp2 ep2 gather"

    def told(*settings: str, **record: float) -> bench.Pair:
        config = dump(bench.recipe(name, settings))
        line = {"name": name, "config": config, "peak_bytes": 1, "step_ms": {"median": 80.0}}
        file.write_text(json.dumps({**line, **record}) + "\n")
        (found,) = bench.pairs(file, "H200")
        return found

    plain = told()
    assert plain.host is None
    assert plain.at_host_ms == plain.predicted_ms
    assert told("kernels.attention=cudnn").predicted_ms < 0.98 * plain.predicted_ms
    once = told(host_ms=50.0)
    twice = told(host_ms=50.0 * 2 / once.host)
    assert twice.host == pytest.approx(2.0)
    assert twice.predicted_ms == plain.predicted_ms
    assert twice.at_host_ms > 1.1 * plain.predicted_ms
    assert "2.00" in next(line for line in bench.report([twice]) if line.startswith(name))
