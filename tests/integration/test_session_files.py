"""Which session files a node with `sessiondir` opens, asked over the API: none that is not meant to be one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.clients import ClientError
from tests.integration.world import Party, Person, World, refused, running_world

GIGABYTE = 1 << 30
ALIAS_BOMB = "a: &a [x]\n" + "".join(
    f"{chr(98 + level)}: &{chr(98 + level)} [{', '.join(['*' + chr(97 + level)] * 9)}]\n" for level in range(9)
)
Place = Callable[[Path, Person], Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("sessiondir")
    with running_world("embedded", home, nodes=0) as world:
        (home / "sessions").mkdir()
        world.node("careful", sessiondir=str(home / "sessions")).start()
        yield world


def written(text: str) -> Place:
    def place(inside: Path, _: Person) -> Path:
        path = inside / "written.yaml"
        path.write_text(text)
        return path

    return place


def linked(target: Callable[[Person], str]) -> Place:
    def place(inside: Path, person: Person) -> Path:
        path = inside / "link.yaml"
        path.symlink_to(target(person))
        return path

    return place


def huge(inside: Path, _: Person) -> Path:
    path = inside / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(GIGABYTE)
    return path


def pipe(inside: Path, _: Person) -> Path:
    path = inside / "pipe.yaml"
    os.mkfifo(path)
    return path


def linked_folder(inside: Path, person: Person) -> Path:
    (inside / "folder").symlink_to(person.home, target_is_directory=True)
    return inside / "folder" / "session.yaml"


REFUSED: dict[str, Place] = {
    "outside": lambda inside, person: person.session_file,
    "outside by dots": lambda inside, person: inside / ".." / person.home.name / "session.yaml",
    "link out": linked(lambda person: str(person.session_file)),
    "folder linked out": linked_folder,
    "link to nowhere": linked(lambda person: "nowhere.yaml"),
    "link to itself": linked(lambda person: "link.yaml"),
    "link to a device": linked(lambda person: "/dev/zero"),
    "device": lambda inside, person: Path("/dev/zero"),
    "pipe": pipe,
    "folder": lambda inside, person: inside,
    "a gigabyte": huge,
    "tag": written("user: !!python/object/apply:os.system ['true']\n"),
    "own tag": written("user: !include /etc/passwd\n"),
    "aliases": written(ALIAS_BOMB),
    "nested without end": written("[" * 100_000),
    "not text": written("\x00\x01\x02"),
    "two documents": written("a: b\n---\nc: d\n"),
    "other type": lambda inside, person: written("x")(inside, person).rename(inside / "session.exe"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_no_session_file_below_the_folder_is_refused_as_argument(case: str, party: Party) -> None:
    person = party.world.person("alice", ether=0)
    inside = party.world.home / "sessions" / person.home.name
    inside.mkdir()
    path = REFUSED[case](inside, person)
    node = party.world.nodes[0].running
    before = node.memory
    client = await party.client()
    with pytest.raises(ClientError) as caught:
        await client.open_session(str(path))
    refused(caught.value, 203, {"name": "configFile", "value": str(path)})
    assert node.memory - before < 64 << 20
    good = inside / "good.yaml"
    good.write_text(person.session_file.read_text())
    session, _ = await client.open_session(str(good))
    await client.close_session(session, force=False)


async def test_a_link_that_stays_inside_the_folder_is_a_session_file(party: Party) -> None:
    person = party.world.person("alice", ether=0)
    inside = party.world.home / "sessions" / person.home.name
    inside.mkdir()
    (inside / "real.yaml").write_text(person.session_file.read_text())
    (inside / "link.yaml").symlink_to(inside / "real.yaml")
    client = await party.client()
    session, _ = await client.open_session(str(inside / "link.yaml"))
    await client.close_session(session, force=False)
