"""What goes between peers: messages as frozen values, their bytes, and a decoder for streams of them."""

from .codec import decode, decode_params, decode_transaction, encode, encode_params, encode_transaction
from .messages import DEFAULT_MESSAGE_LIMIT, Envelope, Message, MessageType
from .stream import StreamDamaged, StreamDecoder

__all__ = [
    "DEFAULT_MESSAGE_LIMIT",
    "Envelope",
    "Message",
    "MessageType",
    "StreamDamaged",
    "StreamDecoder",
    "decode",
    "decode_params",
    "decode_transaction",
    "encode",
    "encode_params",
    "encode_transaction",
]
