"""The vectors of CHAIN.md 1.10 on the deployed contracts."""

from __future__ import annotations

from eth_abi import encode
from eth_hash.auto import keccak

from perun_chain_ethereum.testing import (
    ADDRESS,
    AUTH,
    ETHER,
    PARAMS,
    STATE,
    ZERO,
    Params,
    State,
    World,
    digest,
    funding_id,
    sign,
)
from perun_chain_ethereum.testkeys import TEST_CONTRACTS

E_HOLDER, T_HOLDER = TEST_CONTRACTS["AssetHolderETH"], TEST_CONTRACTS["AssetHolderERC20"]
APP = "0xc74F09dD3D0b7d54F0e38A560EDDfB402dC36dba"

V1 = Params(nonce=1)
V1_STATE = State(V1.id, 1, (E_HOLDER,), ((ETHER, 2 * ETHER),))
V2_SUB = Params(nonce=2, ledger=False)
V2 = Params(duration=3600, nonce=2**256 - 1, app=APP)
V2_STATE = State(
    V2.id,
    2**64 - 1,
    (E_HOLDER, T_HOLDER),
    ((1, 2), (3, 2**256 - 1)),
    ((V2_SUB.id, (7, 8), (1, 0)),),
    b"\x01\x02\x03",
    True,
)


def channel_id(world: World, params: Params) -> str:
    found: bytes = world.read(world.adjudicator, f"channelID({PARAMS})", ["bytes32"], params.abi)[0]
    return found.hex()


def state_hash(world: World, state: State) -> str:
    found: bytes = world.read(world.adjudicator, f"hashState({STATE})", ["bytes32"], state.abi)[0]
    return found.hex()


def test_contracts_are_at_the_published_addresses(world: World) -> None:
    assert {
        "Adjudicator": world.adjudicator,
        "AssetHolderETH": world.eth,
        "PerunToken": world.token,
        "AssetHolderERC20": world.erc20,
    } == TEST_CONTRACTS
    assert world.app == APP


def test_channel_ids(world: World) -> None:
    assert channel_id(world, V1) == "13e25676b4e7945a98f79eaa01cb970867774e4d68ea72c8267a63a2238398b3"
    assert channel_id(world, V2_SUB) == "1434603d51ca93a5e2f9de4a3e07f8d6fcfdd7d5316a37af68f0aed1636ad447"
    assert channel_id(world, V2) == "ddc804731a325a964710cabefd7b8e688080955e489df3474900498de50faf94"


def test_state_hashes(world: World) -> None:
    assert state_hash(world, V1_STATE) == "b0074ccbd3b69967e258a6c31011ad85888a5b45b1afb45385ef28c4f87c0f36"
    assert state_hash(world, V2_STATE) == "5a935e0aa5a17ee8bd0e3f913e8c9c584e983b857cb4c59cf3db2347797b22fc"


def test_a_state_signed_off_chain_is_accepted_on_chain(world: World) -> None:
    assert digest(V1_STATE.hash).hex() == "083c983715985c887016c7197f691bdcbc95a8dd017d49a51a775a398fe8467f"
    assert [sig.hex() for sig in V1_STATE.signed(V1.participants)] == [
        "6d9f4c5c5ca44b8c18e7e0a62b7d0ed4ae021f0cae62d7867b9dd1903c401f77"
        "2965a70250ef1c781d2ff3e22d81aed81028790132d7c897e6e33ac882e01c2c1c",
        "2e39f7c705f129fca255a1764fc43742bd15aa7781f6ab70db6bfe34c7b5afe8"
        "7ce2978b1c2c0922b15f0acae2ab44031661e651c0a1435cd38e6d7382cdf9791c",
    ]
    world.register(V1, V1_STATE)
    assert world.dispute(V1.id).state_hash == V1_STATE.hash


def test_an_authorization_signed_off_chain_pays_on_chain(world: World) -> None:
    auth = (V1.id, ADDRESS[1], ADDRESS[0], ETHER)
    auth_hash = keccak(encode([AUTH], [auth]))
    assert auth_hash.hex() == "9e21e4287305c8181509625f45ee236c75458808f23d38cc9d3af918f6773afe"
    assert digest(auth_hash).hex() == "3f0d5df0286d49014409859486bac7e99da52fb96eee48e03441b7765ce1fc17"
    assert sign(ADDRESS[1], auth_hash).hex() == (
        "2d11025e56115952a447f0c015f90b11cdae30d2de7fafe87bb987f62015bf0b"
        "38dee0beb61890d5db1f74d0975819688c273117df8f526fb55830cee6cb6eec1b"
    )
    world.deposit(V1, ETHER, 2 * ETHER)
    world.conclude_final(V1, V1_STATE.but(final=True))
    world.withdraw(V1, ADDRESS[1], ADDRESS[0], ETHER)
    assert world.holdings(V1, ADDRESS[1]) == 0


def test_funding_ids_are_what_the_holder_credits(world: World) -> None:
    one = bytes([1]) + bytes(31)
    expected = {
        (V1.id, ADDRESS[1]): "653d82480f9a6f91888549d07621e2a05df76506d9ae78386370e8ac770917c4",
        (V1.id, ADDRESS[3]): "13d51c90d9f9e6926bedbc98b5c4fb79ace587bb8fbce4e71b1b37ca112d7806",
        (bytes(32), ZERO): "ad3228b676f7d3cd4284a5443f17f1962b36e491b30a40b2405849e597ba5fb5",
        (one, ZERO): "82ac279db26a206d9ba5a94c07ff940aea4b3bfde8820ec95f4efa0acfd0d5bc",
        (bytes(32), ADDRESS[1]): "274faecd2325a5659626e6a1adf33548c6fff396dceef74ac9be84de6fb072d5",
        (one, ADDRESS[1]): "31bf86a85860579e306d32860cf6f631b3c25efc5e9fcededa9f92f60c33e668",
    }
    assert {key: funding_id(*key).hex() for key in expected} == expected
    world.deposit(V1, 10, 20)
    world.conclude_final(V1, V1_STATE.but(balances=((5, 25),), final=True))
    assert (world.holdings(V1, ADDRESS[1]), world.holdings(V1, ADDRESS[3])) == (5, 25)
