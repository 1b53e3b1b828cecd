"""What was not finite is named; a run without a checkpoint has nothing to go back to."""

from pathlib import Path

import pytest
from tests.trainer.conftest import ALONE

from weft.config.run import RunConfig
from weft.errors import NonFiniteError
from weft.runtime.stage import Rates
from weft.runtime.state import initialise
from weft.testing.kill import digest
from weft.trainer import trouble
from weft.trainer.recover import save_session
from weft.trainer.session import Session, open_session

RATES = Rates(lr=1e-3, weight_decay=0.1, step=1)


@pytest.fixture
def session(few_steps: RunConfig) -> Session:
    made = open_session(few_steps, ALONE)
    initialise(made.stage.state, seed=0)
    return made


def test_a_step_that_is_finite_again_is_said_to_be(session: Session) -> None:
    assert trouble.find(session, index=0, rates=RATES).rank is None


def test_a_weight_that_is_no_number_is_found_in_its_layer(session: Session) -> None:
    session.stage.state.statics["param:layers.1.out"].view(-1)[0] = float("nan")
    finding = trouble.find(session, index=0, rates=RATES)
    assert (finding.task, finding.layer, finding.micro_batch) == ("project", 1, 0)


def test_a_run_goes_back_to_its_newest_checkpoint(session: Session) -> None:
    with pytest.raises(NonFiniteError, match="no checkpoint to go back to"):
        trouble.roll_back(session)
    folder = save_session(session, step=2, report=print)
    before = digest(folder)
    for _, _, tensor in session.stage.state.shards():
        tensor.add_(1)
    assert trouble.roll_back(session) == (2, folder)
    again = save_session(session, step=3, report=print)
    assert digest(Path(again)) == before
