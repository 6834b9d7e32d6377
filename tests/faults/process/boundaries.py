"""Where a process can die: every kind of effect the core knows, before and after it is performed, on both sides.

The kinds come from `perun_core.protocol.effects` itself: an effect that is added there and not named in `SCENES` makes
`unmentioned` say so, and with it the campaign and its test fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, get_args

from perun_core.protocol.effects import ChainStep, Effect, Notification, Notify, Send, SubmitTx
from perun_core.wire.messages import LedgerProposal, LedgerProposalAcc, Update, UpdateAcc, UpdateRej

MOMENTS: Final = ("before", "after")
ACTOR, OTHER = "actor", "other"
"""Who begins what happens in a scene (proposes, pays, closes, leaves), and who answers."""

MESSAGES: Final = (LedgerProposal, LedgerProposalAcc, Update, UpdateAcc, UpdateRej)
"""What conversations of two of our nodes send."""


def kinds() -> tuple[str, ...]:
    """Labels of all effects; those that carry one of several things count once for each of them."""
    inner = {SubmitTx: get_args(ChainStep), Notify: get_args(Notification), Send: MESSAGES}
    labels: list[str] = []
    for effect in get_args(Effect):
        parts = inner.get(effect)
        name = effect.__name__
        labels += [name] if parts is None else [f"{name}.{part.__name__}" for part in parts]
    return tuple(labels)


@dataclass(frozen=True)
class Target:
    """A place to die. `most`: how often it is reached in the scene at least; which time it is, the seed says."""

    scene: str
    role: str
    label: str
    moment: str
    most: int

    def __str__(self) -> str:
        return f"{self.moment} {self.label} of the {self.role} while {self.scene}"


_ASKING: Final = {"Connect": 1, "Persist": 2, "RequestSignature": 1, "Send.Update": 1, "SetTimer": 1, "commit": 2}
_ASKED: Final = {"Notify.AskUser": 1, "SetTimer": 1, "CancelTimer": 1, "Persist": 2, "RequestSignature": 1, "commit": 2}

SCENES: Final[Mapping[str, Mapping[str, Mapping[str, int]]]] = {
    "opening": {
        ACTOR: {
            "Connect": 1,
            "Send.LedgerProposal": 1,
            "SetTimer": 2,
            "CancelTimer": 2,
            "Persist": 4,
            "RequestSignature": 1,
            "Send.UpdateAcc": 1,
            "Publish": 1,
            "SubmitTx.FundChannel": 1,
            "transaction": 1,
            "commit": 6,
            "Reply": 1,
        },
        OTHER: {
            "Persist": 4,
            "RequestSignature": 1,
            "Send.LedgerProposalAcc": 1,
            "Send.UpdateAcc": 1,
            "SetTimer": 1,
            "CancelTimer": 1,
            "Publish": 1,
            "SubmitTx.FundChannel": 1,
            "transaction": 1,
            "commit": 6,
            "Reply": 1,
        },
    },
    "paying": {
        ACTOR: {**_ASKING, "CancelTimer": 1, "Publish": 1, "Reply": 1},
        OTHER: {**_ASKED, "Send.UpdateAcc": 1, "Publish": 1, "Reply": 1},
    },
    "being refused": {
        ACTOR: {**_ASKING, "CancelTimer": 1, "Fail": 1},
        OTHER: {"Notify.AskUser": 1, "CancelTimer": 1, "Send.UpdateRej": 1, "Reply": 1},
    },
    "crossing": {
        ACTOR: {"Connect": 1, "Persist": 2, "RequestSignature": 1, "Send.Update": 1, "SetTimer": 1, "commit": 2},
        OTHER: {"Connect": 1, "Persist": 2, "RequestSignature": 1, "Send.Update": 1, "SetTimer": 1, "commit": 2},
    },
    "interrupting": {
        ACTOR: {**_ASKING, "Fail": 1, "Notify.AskUser": 1},
        OTHER: {"Notify.QuestionWithdrawn": 1, "Send.UpdateRej": 1, **_ASKING},
    },
    "finalising": {
        ACTOR: {**_ASKING, "CancelTimer": 1, "Publish": 1},
        OTHER: {**_ASKED, "Send.UpdateAcc": 1, "Publish": 1},
    },
    "settling": {
        ACTOR: {
            "SubmitTx.ConcludeFinal": 1,
            "SubmitTx.WithdrawHoldings": 1,
            "transaction": 2,
            "authorise": 1,
            "Persist": 4,
            "Notify.ChannelClosed": 1,
            "Reply": 1,
            "commit": 10,
        },
        OTHER: {
            "SubmitTx.ConcludeFinal": 1,
            "SubmitTx.WithdrawHoldings": 1,
            "transaction": 1,
            "authorise": 1,
            "Persist": 4,
            "Notify.ChannelClosed": 1,
            "commit": 8,
        },
    },
    "disputing": {
        ACTOR: {
            "SubmitTx.RegisterState": 1,
            "SubmitTx.AwaitConcludable": 1,
            "SubmitTx.ConcludeState": 1,
            "SubmitTx.WithdrawHoldings": 1,
            "transaction": 3,
            "authorise": 1,
            "Persist": 6,
            "Notify.ChannelClosed": 1,
            "Reply": 1,
            "commit": 12,
        },
        OTHER: {
            "SubmitTx.AwaitConcludable": 1,
            "SubmitTx.ConcludeState": 1,
            "SubmitTx.WithdrawHoldings": 1,
            "transaction": 1,
            "authorise": 1,
            "Persist": 4,
            "Notify.ChannelClosed": 1,
            "commit": 8,
        },
    },
    "leaving": {
        ACTOR: {**_ASKING, "end": 1},
        OTHER: {"Notify.AskUser": 1, "SetTimer": 1},
    },
}
"""Scene → role → where it may die, and how often that place is reached at least.

Beside effects: ``commit``, any write to the database; ``transaction``, a signature on one; ``authorise``, a signature
on a withdrawal; ``end``, the end of a session.
"""

ONE_SIDED: Final[Mapping[str, str]] = {
    "Send.LedgerProposal": "only whoever proposes the channel sends it",
    "Send.LedgerProposalAcc": "only whoever was proposed to sends it",
    "Send.UpdateRej": "only whoever was asked refuses",
    "Notify.QuestionWithdrawn": "only who was asked has a question",
    "Fail": "only who asked for something impossible is told so",
    "SubmitTx.RegisterState": "whoever did not begin the dispute finds it registered",
}
"""Kinds that one role performs only, and why; every other kind is hit on both."""

ELSEWHERE: Final[Mapping[str, str]] = {
    "SubmitTx.ProgressState": "channels with an app are not opened through this API",
    "SubmitTx.FindRegistered": "a state that we do not hold is registered only when our storage is an old copy",
    "Notify.StorageBehind": "only when our storage is an old copy",
    "Notify.Reconciled": "only when our storage was an old copy",
    "Notify.Forked": "two different states of one version are signed by both: what this campaign shows not to happen",
}
"""Kinds that no story of two honest nodes with intact storage has, and why."""

TARGETS: Final = tuple(
    Target(scene, role, label, moment, most)
    for scene, roles in SCENES.items()
    for role, labels in roles.items()
    for label, most in labels.items()
    for moment in MOMENTS
)


def unmentioned() -> tuple[str, ...]:
    """Kinds of effects, and roles of theirs, at which the campaign would never kill anybody."""
    roles: dict[str, set[str]] = {}
    for target in TARGETS:
        roles.setdefault(target.label, set()).add(target.role)
    wanted = {label: 1 if label in ONE_SIDED else 2 for label in kinds() if label not in ELSEWHERE}
    return tuple(label for label, sides in wanted.items() if len(roles.get(label, ())) < sides)


def required() -> frozenset[tuple[str, str, str]]:
    """(label, moment, role) a full campaign must have killed at."""
    effects = frozenset(kinds()) - set(ELSEWHERE)
    return frozenset((each.label, each.moment, each.role) for each in TARGETS if each.label in effects)
