from dataclasses import replace

from weft.compose.templates import evaluation_programs, training_programs
from weft.parallel.layout import Layout
from weft.testing import models

PLAN = models.plan(models.deepseek_like(), Layout(pp=2), 0)
LAST = replace(PLAN, rank=1)


def test_a_rank_records_what_its_chunks_need():
    assert {"embedding.forward", "embedding.backward", "dense.forward"} <= set(
        training_programs(PLAN)
    )
    assert {"positions", "head", "shared_moe.forward"} <= set(training_programs(LAST))
    assert "head.evaluate" in evaluation_programs(LAST)
    assert "head.evaluate" not in evaluation_programs(PLAN)


def test_weights_put_off_are_the_second_part_of_a_backward():
    whole = training_programs(LAST)["shared_moe.backward"]
    parts = training_programs(replace(LAST, layout=Layout(pp=2, pipeline="zero_bubble")))
    now, later = parts["shared_moe.backward"], parts["shared_moe.weights"]
    assert {t.name for t in (*now.tasks, *later.tasks)} == {t.name for t in whole.tasks}
    assert {t.phase for t in later.tasks} == {"wgrad"}
    assert "wgrad" not in {t.phase for t in now.tasks}
