"""Configuration files are text: nothing in them is guessed, executed or quoted back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perun_core.configfile import MAX_FILE_SIZE, Table, load_table
from perun_core.errors import ConfigError


def table(tmp_path: Path, text: str, name: str = "x.yaml") -> Table:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return load_table(path, name="configFile")


def problem(tmp_path: Path, text: str, name: str = "x.yaml") -> str:
    with pytest.raises(ConfigError) as caught:
        table(tmp_path, text, name)
    assert (caught.value.name, caught.value.value) == ("configFile", str(tmp_path / name))
    return caught.value.problem


def test_every_yaml_scalar_stays_the_text_that_was_written(tmp_path: Path) -> None:
    read = table(tmp_path, "a: 0x10\nb: 1m0s\nc: true\nd: 1_000\ne: 1e3\nf: 2024-01-01\ng: '07'\n0x0aF: 010\nh: on\n")
    assert dict(read) == {
        "a": "0x10", "b": "1m0s", "c": "true", "d": "1_000", "e": "1e3", "f": "2024-01-01", "g": "07", "0x0af": "010",
        "h": "on",
    }  # fmt: skip


def test_keys_are_lower_case_and_values_are_not(tmp_path: Path) -> None:
    read = table(tmp_path, "User:\n  OnChainAddr: 0xAbC\nAssetERC20s:\n  0xAB: 0xCD\n")
    assert read == Table({"user": Table({"onchainaddr": "0xAbC"}), "asseterc20s": Table({"0xab": "0xCD"})})


def test_nothing_and_null_are_empty(tmp_path: Path) -> None:
    assert dict(table(tmp_path, "a:\nb: null\nc: ~\nd: 'null'\n")) == {"a": "", "b": "", "c": "", "d": "null"}
    assert dict(table(tmp_path, "")) == {}
    assert dict(table(tmp_path, "# only a comment\n")) == {}


def test_toml_and_json_read_like_yaml(tmp_path: Path) -> None:
    expected = {"loglevel": "debug", "chainid": "1337", "x": ("1", "true"), "user": Table({"ratio": "1.10"})}
    toml = 'LogLevel = "debug"\nchainid = 1337\nx = [1, true]\n[user]\nratio = 1.10\n'
    json = '{"LogLevel": "debug", "chainid": 1337, "x": [1, true], "user": {"ratio": 1.10}}'
    assert dict(table(tmp_path, toml, "x.toml")) == expected
    assert dict(table(tmp_path, json, "x.json")) == expected


def test_an_unquoted_address_in_toml_is_refused_instead_of_mangled(tmp_path: Path) -> None:
    assert "quotes" in problem(tmp_path, "adjudicator = 0x9daEdAcb21dce86Af8604Ba1A1D7F9BFE55ddd63\n", "x.toml")


@pytest.mark.parametrize("text", ["a: !!python/object/apply:os.system [id]", "a: !secret x", "!x {a: b}"])
def test_tags_are_refused(tmp_path: Path, text: str) -> None:
    assert "tags" in problem(tmp_path, text)


def test_aliases_are_refused_so_that_no_file_grows_while_it_is_read(tmp_path: Path) -> None:
    assert "aliases" in problem(tmp_path, "a: &x [1, 1]\nb: [*x, *x]\n")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a: 1\nA: 2\n", "x.yaml"),
        ("a: 1\na: 2\n", "x.yaml"),
        ('{"a": 1, "a": 2}', "x.json"),
        ('{"a": 1, "A": 2}', "x.json"),
        ("a = 1\na = 2\n", "x.toml"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, text: str, name: str) -> None:
    assert problem(tmp_path, text, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a: [", "x.yaml"),
        ("a: b: c", "x.yaml"),
        ("- a\n- b\n", "x.yaml"),
        ("just text", "x.yaml"),
        ("a: 1\n---\nb: 2\n", "x.yaml"),
        ("? [a]\n: b\n", "x.yaml"),
        ("a: \x01\n", "x.yaml"),
        ("{", "x.json"),
        ("[]", "x.json"),
        ("a =", "x.toml"),
    ],
)
def test_a_malformed_file_is_an_error_that_names_the_file(tmp_path: Path, text: str, name: str) -> None:
    assert problem(tmp_path, text, name)


@pytest.mark.parametrize("name", ["x.yaml", "x.json", "x.toml"])
def test_deep_nesting_is_refused(tmp_path: Path, name: str) -> None:
    opening = "a = " if name == "x.toml" else '{"a": ' if name == "x.json" else "a: "
    closing = "}" if name == "x.json" else ""
    assert "deep" in problem(tmp_path, opening + "[" * 20 + "]" * 20 + closing, name)
    assert problem(tmp_path, opening + "[" * 100_000, name)


def test_an_error_never_quotes_what_the_file_says(tmp_path: Path) -> None:
    for text in ("password: [hunter2", "password: hunter2: x", "password: 'hunter2", "hunter2"):
        assert "hunter2" not in problem(tmp_path, text)


def test_a_huge_file_is_refused_unparsed(tmp_path: Path) -> None:
    assert "larger" in problem(tmp_path, "a: " + "x" * MAX_FILE_SIZE)


@pytest.mark.parametrize("name", ["x", "x.txt", "x.yaml.bak", ".yaml"])
def test_the_type_is_taken_from_the_extension(tmp_path: Path, name: str) -> None:
    assert ".yaml" in problem(tmp_path, "a: 1", name)


def test_only_regular_readable_text_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\xfe\n")
    for name in ("folder.yaml", "pipe.yaml", "latin.yaml", "missing.yaml", "nul\0.yaml"):
        with pytest.raises(ConfigError) as caught:
            load_table(tmp_path / name, name="configFile")
        assert caught.value.name == "configFile"


def test_a_table_shows_its_keys_only() -> None:
    assert "hunter2" not in repr(Table({"password": "hunter2"}))
