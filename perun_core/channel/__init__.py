"""What a channel is: parameters, states, the rules between states, and the phases of its life. Pure values."""

from .dispute import Dispute, DisputePhase
from .params import Params
from .phase import Phase, WirePhase
from .state import Allocation, Asset, Balances, State, SubAlloc, Transaction, transaction

__all__ = [
    "Allocation",
    "Asset",
    "Balances",
    "Dispute",
    "DisputePhase",
    "Params",
    "Phase",
    "State",
    "SubAlloc",
    "Transaction",
    "WirePhase",
    "transaction",
]
