import pytest

from weft.errors import ConfigError
from weft.planner.cluster import cluster


def test_a_cluster_knows_its_ranks_and_its_nodes():
    found = cluster("180x8xH800")
    assert (found.ranks, found.machine.name, found.machine.link.ranks) == (1440, "H800", 8)


def test_a_node_is_as_large_as_it_is_written():
    assert cluster("1x2xH200").machine.link.ranks == 2


@pytest.mark.parametrize("text", ["", "8xH800", "0x8xH800", "180x8x", "axbxH800", "180x0xH800"])
def test_what_is_no_cluster_is_refused_with_one_that_is(text: str):
    with pytest.raises(ConfigError, match="180x8xH800"):
        cluster(text)


def test_an_unknown_machine_is_refused():
    with pytest.raises(ConfigError, match="H900"):
        cluster("1x8xH900")
