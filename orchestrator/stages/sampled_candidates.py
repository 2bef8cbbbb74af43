"""The responses of a policy to prompts, for a judge: records flow in, records with sampled responses flow out. Each
sample is kept on the disk, so that a command that goes on samples nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from orchestrator.config.labelling import SAMPLES, AskingBudgetConfig, LabellingRun
from orchestrator.data.answer_file import open_answers
from orchestrator.data.candidates import Candidates, candidate_questions, candidates_of
from orchestrator.data.records import Record
from orchestrator.errors import LabellingStopped
from orchestrator.groups.recovery import TellUser
from orchestrator.stages.asked_model import AskedModel
from orchestrator.stages.asking import Asking


def sampled_candidates(config: LabellingRun, records: Sequence[Record], tell: TellUser) -> Candidates:
    """The records, each with the different responses of the policy to its prompt in place of its own. `tell`: see
    `Builder`."""
    labelling, engines = config.labelling, config.sampling
    assert labelling.candidates is not None and engines is not None
    questions = candidate_questions(records, labelling.candidates, config.seed)
    with ExitStack() as started, open_answers(Path(config.run_dir) / SAMPLES) as file:
        policy = AskedModel(engines, started, "labelling.candidates", tell)
        asking = Asking(policy, file, AskingBudgetConfig(), None)
        answers = asking.answers(questions)
    if asking.stopped is not None:
        raise LabellingStopped(asking.stopped)
    return candidates_of(records, answers, fewest=2 if labelling.constitution is None else 1)
