"""Who reaches whom, and why not."""

import pytest
import torch

from weft.comm import reach
from weft.comm.reach import Member, obstacle_here, unreachable


def members(*devices, able=True, host=1):
    return tuple(Member(able=able, host=host, device=device) for device in devices)


def everybody(_one, _other):
    return True


def test_devices_of_one_host_that_see_each_other_reach_each_other():
    assert unreachable(members(0, 1, 2), everybody) is None


@pytest.mark.parametrize(
    ("group", "why"),
    [
        ((*members(0), *members(1, able=False)), "a member has no symmetric memory"),
        ((*members(0), *members(1, host=2)), "more than one host"),
        (members(0, 0), "under the same number"),
    ],
)
def test_what_stands_in_the_way_is_said(group, why):
    assert why in str(unreachable(group, everybody))


def test_devices_apart_are_named():
    why = unreachable(members(0, 1, 2), lambda one, other: {one, other} != {1, 2})
    assert why == "device 1 does not reach the memory of device 2"


def test_one_device_has_nobody_to_reach(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert obstacle_here() == "it takes two CUDA devices, found 1"


def test_devices_that_are_apart_are_an_obstacle_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(reach, "obstacle", lambda _: "no driver")
    assert obstacle_here() == "no driver"


def test_processes_of_one_host_share_its_number():
    assert reach._host() == reach._host() != 0
