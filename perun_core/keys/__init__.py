"""What key managers share: signing with keys in memory, key files, and calls that block. Made for plugin authors."""

from ..secret import AskedText, NeverCopied, Secret, SecretText
from .blocking import BlockingCalls
from .signing import HeldKeys, address_of, check_key, check_signature, check_transaction, sign_message, sign_transaction

__all__ = [
    "AskedText",
    "BlockingCalls",
    "HeldKeys",
    "NeverCopied",
    "Secret",
    "SecretText",
    "address_of",
    "check_key",
    "check_signature",
    "check_transaction",
    "sign_message",
    "sign_transaction",
]
