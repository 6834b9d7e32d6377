"""How the failure of a command reads (API.md 6.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .failures import ApiFailure, Failure, NodeFailure

_FAILED: Final[Mapping[str, str]] = {
    "node connect": "Error connecting to perun node: ",
    "session open": "Error opening session : ",
    "session close": "Error closing session : ",
    "peer-id add": "Error adding peer ID : ",
    "peer-id get": "Error getting peer ID : ",
    "channel send-opening-request": "Error opening channel : ",
    "channel unsubcribe-from-opening-requests": "Error unsubscribing from channel proposals : ",
    "channel accept-opening-request": "Error responding accept to channel opening request : ",
    "channel reject-opening-request": "Error responding reject to channel opening request : ",
    "channel info": "Error getting channel info: ",
    "channel close-n-settle-on-chain": "Error closing channel update: ",
    "payment send-to-peer": "Error sending payment to peer: ",
    "payment request-from-peer": "Error requesting payment from peer: ",
    "payment unsubscribe-to-notifications": "Error unsubscribing from payment notifications: ",
    "payment accept-payment-update-from-peer": "Error accepting payment channel update: ",
    "payment reject-payment-update-from-peer": "Error rejecting payment channel update: ",
}


def failed(name: str, failure: Failure) -> str:
    """The line for a command that failed (API.md 6.1)."""
    if isinstance(failure, ApiFailure):
        return f"{_FAILED.get(name, 'Error: ')}{failure}."
    if isinstance(failure, NodeFailure) and name != "node connect":
        return f"Error sending command to perun node: {failure}."
    if isinstance(failure, NodeFailure):
        return f"{_FAILED[name]}{failure}"
    return str(failure)
