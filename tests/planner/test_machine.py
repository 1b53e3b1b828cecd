import pytest

from weft.errors import ConfigError
from weft.planner.machine import USUAL, machine, names, nearest, parse

GOOD = """
name = "X"
[device]
peak_flops = 1e12
sustained = 0.5
memory_bytes = 1e9
memory_bandwidth = 1e11
copy = 0.9
multiprocessors = 10
launch = 1e-6
[link]
ranks = 8
bandwidth = 1e10
latency = 1e-6
[nic]
ranks = 1000
bandwidth = 1e9
latency = 1e-6
[source]
"device.peak_flops" = "s"
"device.sustained" = "s"
"device.memory_bytes" = "s"
"device.memory_bandwidth" = "s"
"device.copy" = "s"
"device.multiprocessors" = "s"
"device.launch" = "s"
"link.ranks" = "s"
"link.bandwidth" = "s"
"link.latency" = "s"
"nic.ranks" = "s"
"nic.bandwidth" = "s"
"nic.latency" = "s"
"""


@pytest.mark.parametrize("name", names())
def test_every_machine_of_the_project_is_read_and_named_as_its_file(name: str):
    assert machine(name).name == name


def test_the_machines_of_the_paper_and_those_after_it_have_files():
    assert {"H200", "H800", "H100", "A100", "H20", "B200"} <= set(names())


def test_a_machine_is_found_by_its_name_in_any_case_and_by_its_file(tmp_path):
    (tmp_path / "mine.toml").write_text(GOOD)
    assert machine("h800") == machine("H800")
    assert machine(str(tmp_path / "mine.toml")).device.multiprocessors == 10


def test_an_unknown_machine_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match=r"H900.*H200"):
        machine("H900")
    with pytest.raises(ConfigError, match="cannot be read"):
        machine("nowhere.toml")


def test_a_number_without_a_source_is_refused():
    with pytest.raises(ConfigError, match=r"link\.bandwidth has no source"):
        parse(GOOD.replace('"link.bandwidth" = "s"\n', ""))


@pytest.mark.parametrize("wrong", ["bandwidth = 0", "bandwidth = -1e9", 'bandwidth = "fast"', ""])
def test_a_link_without_bandwidth_is_refused(wrong: str):
    with pytest.raises(ConfigError, match=r"link\.bandwidth"):
        parse(GOOD.replace("bandwidth = 1e10", wrong))


def test_a_measured_row_without_a_source_is_refused():
    row = '[[measured.pass]]\nbody = "swiglu"\nbandwidth = 1e9\n'
    with pytest.raises(ConfigError, match="no source"):
        parse(GOOD + row)
    assert parse(GOOD + row + 'source = "here"\n').measured.passes["swiglu"].bandwidth == 1e9


def test_a_machine_is_found_by_the_name_its_driver_gives_it() -> None:
    assert nearest("NVIDIA H200").name == "H200"
    assert nearest("NVIDIA H20").name == "H20"
    assert nearest("NVIDIA A100-SXM4-80GB").name == "A100"
    assert nearest("NVIDIA RTX PRO 6000").name == USUAL
