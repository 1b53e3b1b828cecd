from dataclasses import replace

from weft.compose.recipe import plan as plan_of_recipe
from weft.config.load import build, dump
from weft.planner.cluster import cluster
from weft.planner.recipe import tree_of
from weft.planner.search import Choice, Wanted, plan_of
from weft.testing import models

MODEL = models.large_mixtral()
WANTED = Wanted(
    name="mixtral-8x7b",
    shape=MODEL.shape,
    arithmetic=MODEL.arithmetic,
    cluster=cluster("2x8xH800"),
    batch=32,
    sequence=8192,
)
CHOICE = Choice(1, 2, 8, 8, 1, 1, "all_gather", "selective")


def test_a_recipe_is_legal_and_asks_for_the_layout_that_was_planned():
    config = build(tree_of(CHOICE, WANTED))
    assert dump(config)
    asked, planned = plan_of_recipe(config, 0), plan_of(CHOICE, WANTED)
    degrees = ("pp", "dp", "sp", "ep", "dispatch")
    assert all(getattr(asked.layout, d) == getattr(planned.layout, d) for d in degrees)
    assert (asked.remat, asked.micro_batch) == (planned.remat, planned.micro_batch)
    assert asked.micro_batches == planned.micro_batches


def test_a_pipeline_is_in_the_recipe():
    tree = tree_of(replace(CHOICE, pp=2, dp=1, chunks=2), WANTED)
    parallel = tree["parallel"]
    assert (parallel["pp"], parallel["chunks"], parallel["pipeline"]) == (2, 2, "interleaved")
