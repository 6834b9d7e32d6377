"""EIP-1559 transactions (EIP-2718 type 2) as bytes: the part that is signed, and the signed whole."""

from __future__ import annotations

from ..ports.keymgr import UnsignedTx
from ..values import MAX_UINT256

_TYPE = b"\x02"


def unsigned_payload(tx: UnsignedTx) -> bytes:
    """What is hashed and signed: ``0x02 || rlp([chain_id, nonce, …, access_list])``. Raises: ValueError."""
    return _TYPE + _list(_fields(tx))


def signed_payload(tx: UnsignedTx, signature: bytes) -> bytes:
    """The transaction to broadcast. `signature` is r ‖ s ‖ parity, 65 bytes, parity 0 or 1. Raises: ValueError."""
    parity, r, s = signature[64], int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    return _TYPE + _list(_fields(tx) + _integer(parity) + _integer(r) + _integer(s))


def signature_in(raw: bytes, tx: UnsignedTx) -> bytes:
    """r ‖ s ‖ parity, 65 bytes, of a signed transaction that somebody else made of `tx`.

    Raises: ValueError unless `raw` is exactly `tx` with a signature.
    """
    fields = _fields(tx)
    signature = _signature(raw.partition(fields)[2])
    if signature is None or signed_payload(tx, signature) != raw:
        raise ValueError("not the transaction that was to be signed")
    return signature


def _signature(items: bytes) -> bytes | None:
    """r ‖ s ‖ parity if `items` may be the encodings of parity, r and s."""
    numbers: list[int] = []
    while items:
        size = 0 if items[0] < 0x80 else items[0] - 0x80
        if size > 32 or len(items) <= size:
            return None
        numbers.append(int.from_bytes(items[1 : 1 + size], "big") if items[0] >= 0x80 else items[0])
        items = items[1 + size :]
    if len(numbers) != 3 or numbers[0] > 1:
        return None
    parity, r, s = numbers
    return r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([parity])


def _fields(tx: UnsignedTx) -> bytes:
    return b"".join(
        (
            _integer(tx.chain_id),
            _integer(tx.nonce),
            _integer(tx.max_priority_fee),
            _integer(tx.max_fee),
            _integer(tx.gas),
            _string(b"" if tx.to is None else bytes(tx.to)),
            _integer(tx.value),
            _string(tx.data),
            _list(b""),  # no access list
        )
    )


def _integer(value: int) -> bytes:
    if not 0 <= value <= MAX_UINT256:
        raise ValueError("a number of the transaction is out of range")
    return _string(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _string(data: bytes) -> bytes:
    if len(data) == 1 and data[0] < 0x80:
        return data
    return _head(0x80, len(data)) + data


def _list(body: bytes) -> bytes:
    return _head(0xC0, len(body)) + body


def _head(offset: int, size: int) -> bytes:
    if size <= 55:
        return bytes([offset + size])
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([offset + 55 + len(digits)]) + digits
