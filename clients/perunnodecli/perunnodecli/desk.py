"""What a shell remembers: the connection, the session, names for channels and requests, and what waits for an answer.

A single command uses the same desk with `live` off: nothing is subscribed to and nothing gets a name, because nobody
would be there to use it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from . import lines
from .endpoint import Security
from .escape import shown
from .failures import Failure, Json, NothingCame, UsageFailure
from .node import Node, Notifications
from .replies import Notice, Tone
from .typed import DEFAULT_CHAIN, DEFAULT_CHALLENGE
from .values import Channel, Kind, Proposal, Update

T = TypeVar("T")

SHORTEST_ID: Final = 8
"""Digits of a channel's ID that may stand for it, when no other channel begins with them."""
READING_SECONDS: Final = 1.5
"""An update that replaces another one cannot be answered for this long: who answers then has read the old one."""
END_SECONDS: Final = 5.0
"""How long the end of a subscription may take to arrive; then it is not waited for."""
GRACE: Final = 1.5
"""The node counts whole seconds, and the last one counts."""


@dataclass(slots=True, eq=False, kw_only=True)
class Waiting:
    """Something the user can answer until `deadline`, in the time of the running loop."""

    deadline: float
    alarm: asyncio.TimerHandle | None = None

    def seconds_left(self) -> int:
        """Whole seconds; negative when it is over."""
        return int(self.deadline - asyncio.get_running_loop().time())

    def forget(self) -> None:
        """No expiry will be told."""
        if self.alarm:
            self.alarm.cancel()


@dataclass(slots=True, eq=False, kw_only=True)
class PendingRequest(Waiting):
    """An opening request."""

    alias: str
    proposal: Proposal


@dataclass(slots=True, eq=False, kw_only=True)
class PendingUpdate(Waiting):
    """An update of a channel. One that took the place of another cannot be answered before `readable_at`."""

    update: Update
    readable_at: float = 0


@dataclass(slots=True, eq=False)
class Held:
    """A channel the user can name; without an alias in a single command."""

    id: str
    peer: str
    currencies: tuple[str, ...]
    alias: str = ""
    pending: PendingUpdate | None = None
    reader: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """What to call it in an answer."""
        return shown(self.alias or self.id)

    def put_back(self, pending: PendingUpdate) -> None:
        """The answer did not reach the node; it can be given again unless something newer waits."""
        if self.pending is None and pending.seconds_left() > 0:
            self.pending = pending


@dataclass(slots=True)
class Book:
    """Names of one session. Numbers start at 1 and are never given twice."""

    session: str = ""
    channels: dict[str, Held] = field(default_factory=dict)
    requests: dict[str, PendingRequest] = field(default_factory=dict)
    closed: dict[str, str] = field(default_factory=dict)
    peers: list[str] = field(default_factory=list)
    proposals_reader: asyncio.Task[None] | None = None
    _channels_named: int = 0
    _requests_named: int = 0

    def name_channel(self, channel: Channel) -> Held:
        """The entry of a channel, new when it has none."""
        known = next((held for held in self.channels.values() if held.id == channel.id), None)
        if known:
            return known
        self._channels_named += 1
        alias = f"ch_{self._channels_named}_{channel.balances.peer}"
        held = Held(channel.id, channel.balances.peer, channel.balances.currencies, alias)
        self.channels[alias] = held
        self.know(held.peer)
        return held

    def name_request(self, proposal: Proposal) -> str:
        """An alias for a request."""
        self._requests_named += 1
        return f"request_{self._requests_named}_{proposal.balances.peer}"

    def know(self, alias: str) -> None:
        """Offer an alias in completion from now on."""
        if alias and alias not in self.peers:
            self.peers.append(alias)

    def readers(self) -> Iterator[asyncio.Task[None]]:
        """Everything that reads a subscription."""
        candidates = (self.proposals_reader, *(held.reader for held in self.channels.values()))
        return (task for task in candidates if task is not None)


class Desk:
    """State of one client. `tell` gets every notification; it must not raise."""

    def __init__(
        self,
        *,
        tell: Callable[[Notice], None],
        live: bool,
        security: Security = Security(),  # noqa: B008 - a frozen value
        session: str = "",
        chain: str = DEFAULT_CHAIN,
        challenge: int = DEFAULT_CHALLENGE,
    ) -> None:
        self.tell = tell
        self.live = live
        self.security = security
        self.chain = chain
        self.challenge = challenge
        self.node: Node | None = None
        self.book = Book(session)
        self._changed = asyncio.Event()

    # ---- what commands ask for --------------------------------------------------------------------------------------

    @property
    def connected(self) -> Node:
        """The node. Raises: UsageFailure."""
        if self.node is None:
            raise UsageFailure("Not connected to perun node, connect using 'node connect' command.")
        return self.node

    @property
    def session(self) -> str:
        """The session. Raises: UsageFailure."""
        if not self.book.session:
            how = "open one with 'session open'" if self.live else "name one with --session or --session-file"
            raise UsageFailure(f"No session: {how}.")
        return self.book.session

    async def channel(self, name: str) -> Held:
        """The channel that `name` means: an alias, an ID or its beginning, or a peer with one channel.

        Raises: UsageFailure when it means none or several, ApiFailure, NodeFailure.
        """
        if name in self.book.channels:
            return self.book.channels[name]
        told = await self.connected.open_channels(self.session)
        held = [self.adopt(channel) for channel in told]
        exact = [each for each in held if each.id == name]
        begins = [each for each in held if len(name) >= SHORTEST_ID and each.id.startswith(name)]
        peers = [each for each in held if each.peer == name]
        found = exact or begins + peers
        if len(found) > 1:
            raise UsageFailure(
                f"{shown(name)} means {len(found)} channels:\n" + "\n".join(f"{each.name} {each.id}" for each in found)
            )
        if found:
            return found[0]
        if len(name) == 64 and set(name) <= set("0123456789abcdef"):
            closed = await self.connected.channel(self.session, name)
            return Held(closed.id, closed.balances.peer, closed.balances.currencies)
        known = " ".join(each.name for each in held)
        raise UsageFailure(f"Unknown channel alias {shown(name)}\nKnown channel aliases:\n[{known}]")

    def adopt(self, channel: Channel) -> Held:
        """The entry of a channel; in a live client one with an alias."""
        if self.live:
            return self.book.name_channel(channel)
        return Held(channel.id, channel.balances.peer, channel.balances.currencies)

    def request(self, alias: str) -> PendingRequest:
        """The request of that alias. Raises: UsageFailure."""
        if alias not in self.book.requests:
            known = " ".join(map(shown, self.book.requests))
            raise UsageFailure(
                f"Unknown channel opening request notification alias {shown(alias)}\n"
                f"Known channel opening request notification aliases:\n[{known}]."
            )
        return self.book.requests[alias]

    async def until(self, fact: Callable[[], T | None], seconds: float | None, what: str) -> T:
        """Wait until `fact` gives something. Raises: NothingCame."""
        try:
            async with asyncio.timeout(seconds):
                while (found := fact()) is None:
                    await self._changed.wait()
                return found
        except TimeoutError as error:
            raise NothingCame(f"{what} did not come in time") from error

    def change(self) -> None:
        """Let those look again who wait for a fact."""
        self._changed.set()
        self._changed = asyncio.Event()

    # ---- coming and going -------------------------------------------------------------------------------------------

    async def use_node(self, node: Node | None) -> None:
        """Talk to `node` from now on; what belonged to another one is forgotten."""
        await self.forget_session()
        if self.node is not None:
            await self.node.close()
        self.node = node

    async def forget_session(self) -> None:
        """Leave all subscriptions and start with an empty book."""
        book, self.book = self.book, Book()
        readers = list(book.readers())
        for task in readers:
            task.cancel()
        for waiting in (*book.requests.values(), *(held.pending for held in book.channels.values())):
            if waiting:
                waiting.forget()
        await asyncio.gather(*readers, return_exceptions=True)
        self.change()

    @staticmethod
    async def ended(reader: asyncio.Task[None] | None) -> None:
        """Until a reader noticed that its subscription ended, so that the next one may follow at once."""
        if reader is not None:
            await asyncio.wait([reader], timeout=END_SECONDS)

    # ---- subscriptions ----------------------------------------------------------------------------------------------

    async def follow_proposals(self) -> None:
        """Tell of opening requests from now on. Raises: ApiFailure, NodeFailure."""
        stream = await self.connected.proposals(self.session)
        self.book.proposals_reader = asyncio.create_task(self._read_proposals(self.book, stream))

    async def follow(self, held: Held) -> None:
        """Tell of updates of a channel from now on. Raises: ApiFailure, NodeFailure."""
        stream = await self.connected.updates(self.session, held.id)
        held.reader = asyncio.create_task(self._read_updates(self.book, held, stream))

    async def _read_proposals(self, book: Book, stream: Notifications[Proposal]) -> None:
        try:
            async for proposal in stream:
                await self._on_proposal(book, proposal)
            self._tell_bad("opening-requests-ended", "Channel opening request subscription closed.")
        except Failure as failure:
            self._tell_failure("Error receiving channel opening request notification", failure)
        finally:
            stream.cancel()
            if book.proposals_reader is asyncio.current_task():
                book.proposals_reader = None
            self.change()

    async def _read_updates(self, book: Book, held: Held, stream: Notifications[Update]) -> None:
        try:
            async for update in stream:
                if update.kind is Kind.CLOSED:
                    self._on_closed(book, held, update)
                else:
                    await self._on_update(held, update)
            self._tell_bad(
                "payments-ended",
                f"Subscription to payment channel notifications closed on channel {held.name} (ID: {shown(held.id)}).",
                channel=held.alias,
            )
        except Failure as failure:
            self._tell_failure(f"Error receiving channel update notification on channel {held.name}", failure)
        finally:
            stream.cancel()
            if held.reader is asyncio.current_task():
                held.reader = None
            self.change()

    async def _on_proposal(self, book: Book, proposal: Proposal) -> None:
        if proposal.expiry == lines.NEVER:
            text = "The node refused it already: it does not know who asks. There is nothing to answer."
            told = ("Channel opening request received.", *lines.opening(proposal), text)
            self.tell(Notice("opening-request-refused", told, {"request": proposal.to_json()}, Tone.BAD))
            return
        left = await self._seconds_left(proposal.expiry)
        alias = book.name_request(proposal)
        pending = PendingRequest(deadline=self._now() + left, alias=alias, proposal=proposal)
        book.requests[alias] = pending
        pending.alarm = self._alarm(left, lambda: self._expire_request(book, pending))
        told = (
            f"Channel opening request notification received. Notification Alias: {shown(alias)}.",
            *lines.opening(proposal),
            lines.expiry(left),
        )
        data: dict[str, Json] = {"alias": alias, "secondsLeft": left, "request": proposal.to_json()}
        self.tell(Notice("opening-request", told, data))
        self.change()

    async def _on_update(self, held: Held, update: Update) -> None:
        left = await self._seconds_left(update.expiry)
        current = await self.connected.channel(self.session, held.id)
        final = update.kind is Kind.FINAL
        kind = "Finalizing payment" if final else "Payment"
        told = [f"{kind} notification received on channel {held.name}. (ID:{shown(update.channel.id)})"]
        if final:
            told.append("Channel will be closed if this payment update is responded to.")
        told += [
            f"Current:\t{lines.balance(current)}",
            f"Proposed:\t{lines.balance(update.channel)}",
            lines.expiry(left),
            *lines.difference(current.balances, update.channel.balances),
        ]
        readable_at = 0.0
        if held.pending:
            held.pending.forget()
            told.append("Dropping older (now obsolete) notification received on this channel.")
            readable_at = self._now() + READING_SECONDS
        pending = held.pending = PendingUpdate(deadline=self._now() + left, update=update, readable_at=readable_at)
        pending.alarm = self._alarm(left, lambda: self._expire_update(held, pending))
        data: dict[str, Json] = {
            "alias": held.alias,
            "secondsLeft": left,
            "update": update.to_json(),
            "current": current.to_json(),
        }
        self.tell(Notice("closing" if final else "payment", tuple(told), data))
        self.change()

    def _on_closed(self, book: Book, held: Held, update: Update) -> None:
        told = [f"Payment channel close notification received on channel {held.name} (ID: {shown(held.id)})"]
        if update.error:
            told += ["Error settling the state:", lines.balance(update.channel, end="")]
            told += [f"on the blockchain: {update.error}.", "The node keeps trying."]
        else:
            told.append(lines.balance(update.channel))
        self.drop(book, held)
        data: dict[str, Json] = {"alias": held.alias, "update": update.to_json()}
        self.tell(Notice("closed", tuple(told), data, Tone.BAD if update.error else Tone.GOOD))
        self.change()

    def drop(self, book: Book, held: Held) -> None:
        """Forget the name of a channel that is closed."""
        if held.pending:
            held.pending.forget()
            held.pending = None
        if book.channels.pop(held.alias, None):
            book.closed[held.alias] = held.id

    def _expire_request(self, book: Book, pending: PendingRequest) -> None:
        if book.requests.pop(pending.alias, None):
            text = f"{shown(pending.alias)} expired without an answer; for the peer that is a no."
            self._tell_bad("opening-request-expired", text, alias=pending.alias)
            self.change()

    def _expire_update(self, held: Held, pending: PendingUpdate) -> None:
        if held.pending is pending:
            held.pending = None
            text = f"The update on channel {held.name} expired without an answer; for the peer that is a no."
            self._tell_bad("payment-expired", text, alias=held.alias)
            self.change()

    # ---- small things -----------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _alarm(self, left: int, act: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(max(left, 0) + GRACE, act)

    async def _seconds_left(self, expiry: int) -> int:
        return expiry - await self.connected.time()

    def _tell_bad(self, event: str, text: str, **data: Json) -> None:
        self.tell(Notice(event, (text,), dict(data), Tone.BAD))

    def _tell_failure(self, what: str, failure: Failure) -> None:
        self.tell(Notice("error", (f"{what}: {failure}.",), {"error": failure.to_json()}, Tone.BAD))
