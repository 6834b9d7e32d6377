"""Errors as clients read them (API.md 2.1): the one place where they become messages."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from google.protobuf.message import Message

from perun_core.errors import (
    ApiError,
    ChainUnreachable,
    FailedPrecondition,
    InvalidArgument,
    InvalidConfig,
    InvalidContracts,
    PeerNotFunded,
    PeerRejected,
    PeerRequestTimedOut,
    ResourceExists,
    ResourceNotFound,
    TransactionTimedOut,
    UnknownInternal,
    UserResponseTimedOut,
)
from perun_core.ports.api import PayChInfo

from .convert import channel_to
from .pb import errors_pb2 as pb

logger: Final = logging.getLogger(__name__)

ADDITIONAL: Final[Mapping[int, type[Message]]] = {
    101: pb.ErrInfoPeerRequestTimedOut,
    102: pb.ErrInfoPeerRejected,
    103: pb.ErrInfoPeerNotFunded,
    104: pb.ErrInfoUserResponseTimedOut,
    201: pb.ErrInfoResourceNotFound,
    202: pb.ErrInfoResourceExists,
    203: pb.ErrInfoInvalidArgument,
    204: pb.ErrInfoFailedPreCondUnclosedChs,
    205: pb.ErrInfoInvalidConfig,
    206: pb.ErrInfoInvalidContracts,
    301: pb.ErrInfoTxTimedOut,
    302: pb.ErrInfoChainNotReachable,
}
"""Additional information by code; the member of `addInfo` has the name of its type. 401 has none."""


def answer_to(failure: Exception, *, method: str) -> tuple[ApiError, pb.MsgError]:
    """What a client is told about `failure` in `method`, as error and as message. Never raises.

    Anything but an ApiError is a bug: logged with its traceback here, answered as 401 without details.
    """
    if isinstance(failure, ApiError):
        try:
            return failure, message_of(failure)
        except (AttributeError, KeyError, TypeError, ValueError):
            logger.exception("%s: error %r cannot be told", method, failure)
    else:
        logger.error("%s failed", method, exc_info=failure)
    unknown = UnknownInternal("internal error, see the log of the node")
    return unknown, message_of(unknown)


def message_of(error: ApiError) -> pb.MsgError:
    """The error as a message. `addInfo` stays unset when the error has no information (API.md 2.1.2).

    Raises: KeyError, TypeError or ValueError when code and information do not fit the published messages.
    """
    message = pb.MsgError(
        category=pb.ErrorCategory.ValueType(error.category),
        code=pb.ErrorCode.ValueType(error.code),
        message=error.message,
    )
    if error.info:
        kind = ADDITIONAL[error.code]
        fields = {name: _field(value) for name, value in error.info.items()}
        getattr(message, kind.DESCRIPTOR.name).CopyFrom(kind(**fields))
    return message


KINDS: Final[Mapping[int, type[ApiError]]] = {
    kind.code: kind
    for kind in (
        PeerRequestTimedOut,
        PeerRejected,
        PeerNotFunded,
        UserResponseTimedOut,
        ResourceNotFound,
        ResourceExists,
        InvalidArgument,
        FailedPrecondition,
        InvalidConfig,
        InvalidContracts,
        TransactionTimedOut,
        ChainUnreachable,
        UnknownInternal,
    )
}
"""Errors by code."""


def error_of(message: pb.MsgError) -> ApiError:
    """The error another node told. Lists in the additional information are left out; an unknown code is 401."""
    kind = KINDS.get(int(message.code), UnknownInternal)
    error = kind.__new__(kind)
    which = message.WhichOneof("addInfo") if int(message.code) in KINDS else None
    info = {}
    if which is not None:
        told = getattr(message, which)
        values = ((field.name, getattr(told, field.name)) for field in told.DESCRIPTOR.fields)
        info = {name: value for name, value in values if isinstance(value, str | int)}
    ApiError.__init__(error, message.message or f"code {message.code}", **info)
    return error


def _field(value: object) -> object:
    return [_entry(each) for each in value] if isinstance(value, tuple) else value


def _entry(value: object) -> Message:
    match value:
        case PayChInfo():
            return channel_to(value)
        case (str(name), str(address), str(problem)):
            return pb.ContractErrInfo(name=name, address=address, error=problem)
        case _:
            raise TypeError(f"neither a channel nor a contract: {type(value).__name__}")
