"""Requests that nobody should send: made from good ones by changing what the definitions allow, and then the bytes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

MEGABYTE: Final = 1 << 20

TEXTS: Final = (
    "",
    " ",
    "self",
    "bob",
    "0",
    "-1",
    "1e999999999",
    "1e-999999999",
    "9" * 5000,
    "NaN",
    "0x",
    "0x" + "f" * 40,
    "f" * 64,
    "F" * 64,
    "\x00",
    "\x1b[2J\x1b[31m",
    "a\nlevel=error msg=forged",
    "../../../etc/passwd",
    "/dev/zero",
    "{{7*7}}",
    "%s%n",
    "\u202e\u0000\uffff",
    "ё" * 1000,
)
NUMBERS: Final = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
LENGTHS: Final = (0, 1, 19, 20, 21, 31, 32, 33, 64, 65, 66, 4096)
LARGE: Final = 4096
"""Bytes of a message that is not made a thousand times as large: its sender would be kept busy, not the node."""
IDENTITY: Final = "sessionID"
SIGNED: Final = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64}
BITS: Final = {
    FieldDescriptor.CPPTYPE_INT32: 32,
    FieldDescriptor.CPPTYPE_UINT32: 32,
    FieldDescriptor.CPPTYPE_INT64: 64,
    FieldDescriptor.CPPTYPE_UINT64: 64,
}


class Mutator:
    """Changes messages; every change follows from the seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def mutated(self, good: Message) -> Message | bytes:
        """A copy of `good` with one to four changes; now and then bytes that are no message at all."""
        copy = type(good)()
        copy.CopyFrom(good)
        for _ in range(self._random.choice((1, 1, 1, 2, 3, 4))):
            self._change(copy)
        if self._random.random() < 0.1:
            return self._damaged(copy.SerializeToString())
        return copy

    def _change(self, message: Message) -> None:
        """Change one field, of this message or of one inside it."""
        places = list(fields(message))
        if not places:
            return
        owner, field = self._random.choice(places)
        if field.name == IDENTITY and self._random.random() < 0.9:
            owner, field = self._random.choice(
                places
            )  # an unknown session is refused before anything else is looked at
        if self._random.random() < 0.15:
            owner.ClearField(field.name)
        elif field.is_repeated:
            self._change_list(owner, field)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            getattr(owner, field.name).SetInParent()
        else:
            setattr(owner, field.name, self._value(field))

    def _change_list(self, owner: Message, field: FieldDescriptor) -> None:
        """Longer, shorter, in another order, or with another entry."""
        entries: Any = getattr(owner, field.name)
        match self._random.randrange(4):
            case 0 if entries:
                del entries[self._random.randrange(len(entries))]
            case 1 if entries:
                times = self._random.choice((1, 2, 1000))
                entries.extend([entries[0]] * (times if owner.ByteSize() < LARGE else 1))
            case 2 if len(entries) > 1:
                kept = list(entries)
                self._random.shuffle(kept)
                owner.ClearField(field.name)
                entries.extend(kept)
            case _:
                if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                    entries.add()
                else:
                    entries.append(self._value(field))

    def _value(self, field: FieldDescriptor) -> object:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return self._random.randbytes(
                    MEGABYTE if self._random.random() < 0.01 else self._random.choice(LENGTHS)
                )
            case FieldDescriptor.CPPTYPE_STRING:
                return "A" * MEGABYTE if self._random.random() < 0.01 else self._random.choice(TEXTS)
            case FieldDescriptor.CPPTYPE_BOOL:
                return bool(self._random.getrandbits(1))
            case kind:
                bits = BITS[kind]
                number = self._random.choice(NUMBERS) % 2**bits
                return number - 2**bits if kind in SIGNED and number >= 2 ** (bits - 1) else number

    def _damaged(self, data: bytes) -> bytes:
        """Cut, flipped, repeated, or mere noise."""
        noise = bytearray(data)
        match self._random.randrange(4):
            case 0:
                return bytes(noise[: self._random.randrange(len(noise) + 1)])
            case 1:
                return bytes(noise) * self._random.choice((2, 3, 50))
            case 2:
                return self._random.randbytes(self._random.choice((1, 10, 1000, 100_000)))
            case _:
                for _ in range(self._random.randrange(1, 10)):
                    if noise:
                        noise[self._random.randrange(len(noise))] = self._random.randrange(256)
                return bytes(noise)


def fields(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Every field that can be changed, of the message and of all that are inside it."""
    for field in message.DESCRIPTOR.fields:
        yield message, field
        if field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
            continue
        value = getattr(message, field.name)
        if field.is_repeated:
            for entry in value:
                yield from fields(entry)
        elif message.HasField(field.name):
            yield from fields(value)
