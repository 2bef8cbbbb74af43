"""The table of roles: what placement, planner, driver and reports know of a role by its name, one row for each.

Imports nothing, so that every layer can read it. A role is called by its row's name in placements, in messages and in
metrics; a member of an ensemble of rewards is called `reward.NAME`.
"""

from __future__ import annotations

from dataclasses import dataclass

ACTOR, CRITIC, REWARD, REFERENCE = "actor", "critic", "reward", "reference"
JUDGE, LABELLER, ENGINES, KEEPER = "judge", "labeller", "rollout", "keeper"


@dataclass(frozen=True, slots=True)
class Role:
    """A row of the table. Example: the reference is `Role("reference", phases=("score",), fills="reference_logprobs",
    made_by="roles.reference.Reference", answers="log-probabilities", colour="blue", short="ref", openrlhf="ref")`."""

    name: str
    phases: tuple[str, ...] = ()
    """Phases of a PPO step in which the role works: `generate`, `score`, `update`, `push`."""
    holds_model: bool = True
    """Whether the role has a model, which computes on GPUs if the run has some."""
    value_head: bool = False
    """Whether the model gives one number per token instead of one per word of the vocabulary."""
    fills: str = ""
    """The field of `roles.batch.Scored` that the role computes; for the engines, of `roles.batch.Rollouts`."""
    method: str = ""
    """The method of the role's class that computes the field; empty: the method of the same name."""
    answers: str = ""
    """What the computed numbers are called in the descriptions of metrics."""
    made_by: str = ""
    """The role's class as `module.Class`; its module is imported only when the class is needed."""
    own_section: str = ""
    """The role's section of the configuration; empty: the section of the same name."""
    colour: str = "white"
    """Colour in the drawing of a plan, a name known to rich."""
    short: str = ""
    """Name in the drawing of a plan; empty: the role's name."""
    openrlhf: str | None = None
    """Prefix of OpenRLHF's placement keys for the role; None: OpenRLHF has no such role."""

    @property
    def trained(self) -> bool:
        """Whether the role has an optimizer."""
        return "update" in self.phases

    @property
    def frozen(self) -> bool:
        """Whether the role works in the phase `score` and is never trained."""
        return "score" in self.phases and not self.trained

    @property
    def section(self) -> str:
        """Key path of the role's section of the configuration."""
        return self.own_section or self.name

    @property
    def scored_by(self) -> str:
        """The method of the role's class that is called in the phase `score`."""
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
    Role(LABELLER, value_head=True, own_section="retraining.judge"),
    Role(KEEPER, holds_model=False, made_by="orchestrator.ppo.row_shard.RowShard"),
    Role(ENGINES, phases=("generate", "push"), fills="rollout_logprobs", colour="cyan", short="vLLM"),
)

ROLES: dict[str, Role] = {role.name: role for role in TABLE}
"""Name → row. Read it when you need it: a list made of it at import would miss rows that are added later."""


def base_role(role: str) -> str:
    """The role of an ensemble's member (`reward` of `reward.helpful`); any other role is returned as it is."""
    return role.partition(".")[0]


def row_of(role: str) -> Role:
    """The row of a role, or of a member of an ensemble of rewards."""
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
    """Role → prefix of OpenRLHF's placement keys."""
    return {role.name: role.openrlhf for role in ROLES.values() if role.openrlhf is not None}
