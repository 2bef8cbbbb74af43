"""The table of roles: what placement, planner, driver and reports know of a role by its name, one row for each.

Imports nothing, so that every layer can read it. A role is called by its row's name in placements, in messages and in
metrics; a member of an ensemble of rewards is called `reward.NAME`.
"""

from __future__ import annotations

from dataclasses import dataclass

ACTOR, CRITIC, REWARD, REFERENCE = "actor", "critic", "reward", "reference"
JUDGE, ENGINES = "judge", "rollout"


@dataclass(frozen=True, slots=True)
class Role:
    """A row of the table. Example: the reference is `Role("reference", phases=("score",), fills="reference_logprobs",
    made_by="roles.reference.Reference", answers="log-probabilities", colour="blue", short="ref", openrlhf="ref")`."""

    name: str
    phases: tuple[str, ...] = ()
    """Phases of a PPO step in which it works: `generate`, `score`, `update`, `push`."""
    holds_model: bool = True
    """Whether it has a model, which computes on GPUs where the run has some."""
    value_head: bool = False
    """Whether its model ends in one number for a token, not in one for each word of the vocabulary."""
    fills: str = ""
    """The field of `roles.batch.Scored` that it computes; of the engines, of `roles.batch.Rollouts`."""
    method: str = ""
    """The method of its class that computes it in the phase `score`; empty: of the same name as the field."""
    answers: str = ""
    """What these numbers are called in the descriptions of metrics."""
    made_by: str = ""
    """Its class, as `module.Class`: only where it is looked up does its module load."""
    own_section: str = ""
    """Its section of the configuration; empty: the one of its name."""
    colour: str = "white"
    """In the drawing of a plan, as rich calls it."""
    short: str = ""
    """Its name in that drawing; empty: its own."""
    openrlhf: str | None = None
    """What OpenRLHF's keys of its placement begin with; None: it is not known there."""

    @property
    def trained(self) -> bool:
        """Whether it has an optimizer."""
        return "update" in self.phases

    @property
    def frozen(self) -> bool:
        """Whether it works in the phase `score` and is never trained."""
        return "score" in self.phases and not self.trained

    @property
    def section(self) -> str:
        """The key path of its section of the configuration."""
        return self.own_section or self.name

    @property
    def scored_by(self) -> str:
        """The method of its class that is called in the phase `score`."""
        return self.method or self.fills


TABLE = (
    Role(
        ACTOR,
        phases=("score", "update", "push"),
        fills="old_logprobs",
        method="logprobs",
        made_by="roles.actor.Actor",
        answers="log-probabilities",
        colour="green",
        openrlhf="actor",
    ),
    Role(
        CRITIC,
        phases=("score", "update"),
        value_head=True,
        fills="values",
        made_by="roles.critic.Critic",
        answers="values",
        colour="yellow",
        openrlhf="critic",
    ),
    Role(
        REWARD,
        phases=("score",),
        value_head=True,
        fills="scores",
        method="score",
        answers="scores",
        colour="magenta",
        openrlhf="reward",
    ),
    Role(
        REFERENCE,
        phases=("score",),
        fills="reference_logprobs",
        made_by="roles.reference.Reference",
        answers="log-probabilities",
        colour="blue",
        short="ref",
        openrlhf="ref",
    ),
    Role(JUDGE, holds_model=False, own_section="evaluation.judge"),
    Role(ENGINES, phases=("generate", "push"), fills="rollout_logprobs", colour="cyan", short="vLLM"),
)

ROLES: dict[str, Role] = {role.name: role for role in TABLE}
"""By name. Read it when you need it: a list made of it at import does not see a row that is added later."""


def base_role(role: str) -> str:
    """`reward` of `reward.helpful`; any other role is its own."""
    return role.partition(".")[0]


def row_of(role: str) -> Role:
    """Of a role, or of a member of an ensemble of rewards."""
    return ROLES[base_role(role)]


def working_in(phase: str) -> list[str]:
    """The roles that work in a phase of a step."""
    return [role.name for role in ROLES.values() if phase in role.phases]


def trained_roles() -> list[str]:
    """The roles with an optimizer."""
    return working_in("update")


def gpu_roles() -> list[str]:
    """The roles with a model, other than the engines: in a placement they are named in `roles`."""
    return [role.name for role in ROLES.values() if role.holds_model and role.name != ENGINES]


def openrlhf_names() -> dict[str, str]:
    """Role → what OpenRLHF's keys of its placement begin with."""
    return {role.name: role.openrlhf for role in ROLES.values() if role.openrlhf is not None}
