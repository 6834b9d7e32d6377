"""Which contracts a node accepts, and how it starts (CHAIN.md 2.3, 2.4, 6.3: N1, N2, N3)."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from eth_hash.auto import keccak

from perun_chain_ethereum import code_check
from perun_chain_ethereum.artifacts import ContractKind, load
from perun_chain_ethereum.code_check import OWN_SET, CodeEntry, UnknownCode, WrongImmutable, identify, known_code
from perun_chain_ethereum.opening import THIRD_PARTY, EthereumConfig
from perun_core.config import backend_options
from perun_core.errors import ConfigError, ContractInvalid
from perun_core.ports.chain import Chain, Contracts
from perun_core.ports.keymgr import UnsignedTx
from perun_core.values import Address
from plugins.chain_ethereum.tests.chain_backend.conftest import CHAIN_ID, ETHER, Key, Ledger
from tests.chain.conftest import Funded
from tests.integration.world import World, running_world

NOBODY = Address(b"\xaa" * 20)
Deploy = Callable[..., Any]


@pytest.fixture
async def payer(instant: Ledger, funded: Funded) -> Key:
    key: Key = await funded(instant, ether=ETHER)
    return key


@pytest.fixture
def deploy(instant: Ledger, payer: Key) -> Deploy:
    """`await deploy(kind, *addresses)` creates one of our contracts for these addresses."""

    async def create(kind: ContractKind, *made_for: Address) -> Address:
        data = load(kind).creation_code + b"".join(bytes(12) + each for each in made_for)
        nonce = int(await instant.rpc("eth_getTransactionCount", payer.address.checksum, "pending"), 16)
        raw = await payer.sign(UnsignedTx(CHAIN_ID, nonce, 10**9, 20 * 10**9, 6_000_000, None, 0, data))
        tx = await instant.rpc("eth_sendRawTransaction", "0x" + raw.hex())
        while (receipt := await instant.rpc("eth_getTransactionReceipt", tx)) is None:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.05)
        assert receipt["status"] == "0x1"
        return Address.from_hex(receipt["contractAddress"])

    return create


async def refused(check: Any) -> str:
    """Why a contract is not accepted."""
    with pytest.raises(ContractInvalid) as caught:
        await check
    return caught.value.problem


# ---- N1 --------------------------------------------------------------------------------------------------------------


@pytest.mark.anvil
async def test_an_adjudicator_is_known_by_its_code(instant: Ledger, deploy: Deploy) -> None:
    another = await deploy(ContractKind.ADJUDICATOR)
    for address, right in (
        (Address.from_hex(instant.contracts.adjudicator), True),
        (another, True),
        (NOBODY, False),
        (instant.eth_holder, False),
        (instant.token, False),
    ):
        async with instant.open(contracts=Contracts(address, instant.eth_holder)) as chain:
            if right:
                assert await chain.validate_adjudicator() == ""
            else:
                assert await refused(chain.validate_adjudicator())


async def holders(chain: Chain, wrong: tuple[Address, ...], token: Address | None) -> None:
    for address in wrong:
        assert await refused(chain.validate_holder("X", address, token))


@pytest.mark.anvil
async def test_a_holder_must_be_of_the_right_kind_adjudicator_and_token(instant: Ledger, deploy: Deploy) -> None:
    ours = Address.from_hex(instant.contracts.adjudicator)
    another = await deploy(ContractKind.ADJUDICATOR)
    eth_of_another = await deploy(ContractKind.ETH_HOLDER, another)
    token_of_another = await deploy(ContractKind.ERC20_HOLDER, another, instant.token)
    for_another_token = await deploy(ContractKind.ERC20_HOLDER, ours, instant.eth_holder)
    async with instant.open() as chain:
        assert await chain.validate_holder("ETH", instant.eth_holder, None) == ""
        await holders(chain, (NOBODY, ours, instant.token_holder, instant.token, eth_of_another), None)
        assert await chain.validate_holder("PRN", instant.token_holder, instant.token) == ""
        assert await chain.validate_holder("X", for_another_token, instant.eth_holder) == ""
        wrong = (NOBODY, ours, instant.eth_holder, token_of_another, for_another_token)
        await holders(chain, wrong, instant.token)
    async with instant.open(contracts=Contracts(another, eth_of_another)) as chain:
        assert await chain.validate_holder("ETH", eth_of_another, None) == ""
        assert await chain.validate_holder("PRN", token_of_another, instant.token) == ""
        await holders(chain, (instant.eth_holder,), None)


@pytest.mark.anvil
async def test_a_holder_is_judged_by_itself_not_by_the_adjudicator_s_code(instant: Ledger, deploy: Deploy) -> None:
    """Validating the adjudicator is a question of its own."""
    holder = await deploy(ContractKind.ETH_HOLDER, NOBODY)
    async with instant.open(contracts=Contracts(NOBODY, holder)) as chain:
        assert await chain.validate_holder("ETH", holder, None) == ""
        assert await refused(chain.validate_adjudicator())


# ---- N2 --------------------------------------------------------------------------------------------------------------

TOKEN, OTHER = b"\xbb" * 20, b"\xcc" * 20
OFFSETS = {"P1": (950, 1680, 2038), "P2": (372, 2032, 2448), "P3": (372, 2016, 2420)}
LENGTHS = {"P1": 4260, "P2": 4323, "P3": 4521}


def test_each_known_set_keeps_its_token_where_its_profile_says() -> None:
    """CHAIN.md 2.4; five contracts per profile, all of them marked as giving fewer guarantees than ours."""
    for profile, offsets in OFFSETS.items():
        entries = [entry for entry in known_code() if entry.set_name == f"third-party {profile}"]
        assert {entry.kind for entry in entries} == set(ContractKind) and all(entry.unsafe for entry in entries)
        for entry in entries:
            expected = {"token": offsets} if entry.kind is ContractKind.ERC20_HOLDER else {}
            assert dict(entry.immutables) == expected


@pytest.mark.parametrize("profile", list(OFFSETS))
def test_the_rule_holds_at_the_offsets_of_every_profile(profile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """N2: code of the set's length, with its offsets, is right for its token alone; every flipped byte counts."""
    offsets = OFFSETS[profile]
    blank = bytearray((7 * at) % 251 + 1 for at in range(LENGTHS[profile]))
    for at in offsets:
        blank[at : at + 32] = bytes(32)
    entry = CodeEntry("a set", profile, ContractKind.ERC20_HOLDER, keccak(bytes(blank)), {"token": offsets}, True)
    monkeypatch.setattr(code_check, "known_code", lambda: (entry,))
    code = bytearray(blank)
    for at in offsets:
        code[at + 12 : at + 32] = TOKEN
    assert identify(ContractKind.ERC20_HOLDER, bytes(code), token=TOKEN).entry is entry
    with pytest.raises(WrongImmutable):
        identify(ContractKind.ERC20_HOLDER, bytes(code), token=OTHER)
    inside = [at + part for at in offsets for part in (0, 11, 12, 31)]
    outside = [0, offsets[0] - 1, offsets[0] + 32, offsets[-1] + 32, len(code) - 53, len(code) - 1]
    for at in inside + outside:
        flipped = bytearray(code)
        flipped[at] ^= 1
        with pytest.raises(UnknownCode):
            identify(ContractKind.ERC20_HOLDER, bytes(flipped), token=TOKEN)
    for other in (code[:-53], code[:-1], bytes(code) + b"\0"):
        with pytest.raises(UnknownCode):
            identify(ContractKind.ERC20_HOLDER, bytes(other), token=TOKEN)


# ---- known sets of another origin ------------------------------------------------------------------------------------


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hashes of our own build count as a known set of another origin."""
    entries = tuple(
        dataclasses.replace(entry, set_name="a third party's", unsafe=True)
        for entry in known_code()
        if entry.set_name == OWN_SET
    )
    monkeypatch.setattr(code_check, "known_code", lambda: entries)


async def validated(chain: Chain, ledger: Ledger) -> list[str]:
    """What is said about every contract of the set."""
    return [
        await chain.validate_adjudicator(),
        await chain.validate_holder("ETH", ledger.eth_holder, None),
        await chain.validate_holder("PRN", ledger.token_holder, ledger.token),
    ]


@pytest.mark.anvil
async def test_contracts_of_another_origin_are_used_with_a_warning_without_one_or_not_at_all(
    instant: Ledger, foreign: None
) -> None:
    async with instant.open() as chain:
        told = await validated(chain, instant)
        assert all("a third party's" in text and "do not use it for anything of value" in text for text in told)
    async with instant.open(config=EthereumConfig(third_party_contracts="accept")) as chain:
        assert await validated(chain, instant) == [""] * 3
    async with instant.open(config=EthereumConfig(third_party_contracts="refuse")) as chain:
        for check in (
            chain.validate_adjudicator(),
            chain.validate_holder("ETH", instant.eth_holder, None),
            chain.validate_holder("PRN", instant.token_holder, instant.token),
        ):
            assert "third_party_contracts" in await refused(check)


@pytest.mark.anvil
@pytest.mark.parametrize("choice", THIRD_PARTY)
async def test_our_own_contracts_are_used_without_a_word_whatever_is_chosen(instant: Ledger, choice: str) -> None:
    async with instant.open(config=EthereumConfig(third_party_contracts=choice)) as chain:
        assert await validated(chain, instant) == [""] * 3


def test_a_word_that_is_no_choice_is_refused_with_the_likeliest_one() -> None:
    with pytest.raises(ConfigError) as caught:
        backend_options(EthereumConfig, {"third_party_contracts": "Warm"}, "plugins.chain_ethereum")
    assert "must be one of warn, accept, refuse; did you mean warn?" in str(caught.value)
    with pytest.raises(ConfigError):
        backend_options(EthereumConfig, {"max_head_age": "-1"}, "plugins.chain_ethereum")
    options = backend_options(EthereumConfig, {"max_head_age": "900"}, "plugins.chain_ethereum")
    assert (options.third_party_contracts, options.max_head_age) == ("warn", 900)


# ---- N3 --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The embedded chain with contracts and no node."""
    with running_world("embedded", tmp_path_factory.mktemp("starting"), nodes=0) as world:
        yield world


WRONG = {
    "adjudicator too long": (lambda c: {"adjudicator": c["adjudicator"] + "00"}, "adjudicator"),
    "adjudicator is a holder": (lambda c: {"adjudicator": c["eth"]}, "adjudicator"),
    "ETH holder is for a token": (lambda c: {"asseteth": c["erc20"]}, "ETH"),
    "token holder is for ETH": (lambda c: {"asseterc20s": {c["token"]: c["eth"]}}, "ETH"),
    "token without code": (lambda c: {"asseterc20s": {NOBODY.checksum: c["erc20"]}}, NOBODY.checksum),
    "token address unreadable": (lambda c: {"asseterc20s": {"token": c["erc20"]}}, "asseterc20s"),
    "token holder without code": (lambda c: {"asseterc20s": {c["token"]: NOBODY.checksum}}, "PRN"),
}


@pytest.mark.slow
def test_a_node_does_not_start_on_what_it_cannot_trust_and_says_why(world: World) -> None:
    """N3: exit code 1, the reason in words, no port served. All at once, since each only has to fail."""
    started = []
    for number, (case, (change, text)) in enumerate(WRONG.items()):
        node = world.node(f"wrong{number}", **change(world.contracts))
        started.append((case, text, node, node.launch()))
    for case, text, node, process in started:
        assert process.process.wait(60) == 1, case
        assert text in process.output, f"{case}: {process.output}"
        assert "Traceback" not in process.output and "Serving" not in process.output, case
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", node.port)) != 0
