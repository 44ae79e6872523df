from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.clients.declared import Client, Key, unix_seconds
from services.clients.editing import add, remove_client, remove_key, rotate
from services.clients.reading import ClientsFileError, parse
from services.clients.writing import NEW_FILE, keys_of
from tests.unit.clients.written import Written, files, hash_number

if TYPE_CHECKING:
    from collections.abc import Callable

RELAXED = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NEW = hash_number(-1)
END = "2027-01-31T18:00:05Z"

names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9@._-]{0,63}\Z") | st.sampled_from(["null", "true", "123", "1e5", "2027-01-31", "no", "0x1F"])
models = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9@._:/-]{0,20}\Z")
clients = st.builds(
    Client,
    name=names,
    keys=st.sampled_from([(NEW,), (Key(NEW, END),)]),
    role=st.sampled_from(["user", "ops"]),
    max_priority=st.sampled_from(["high", "normal", "low"]),
    tokens_per_minute=st.none() | st.integers(1, 1_000_000_000),
    max_concurrent_requests=st.none() | st.integers(1, 1_000_000),
    models=st.none() | st.lists(models, min_size=1, max_size=3).map(tuple),
    expires=st.sampled_from([None, "2099-12-31", "2099-12-31 18:00", "2099-12-31T18:00:01+02:00"]),
)


def comments(text: str) -> list[str]:
    """Every comment; no value of these files has a `#`."""
    return [line[line.index("#") :].rstrip() for line in text.splitlines() if "#" in line]


def lines_lost(before: str, after: str) -> list[str]:
    """Lines that were there and are there no longer."""
    return list((Counter(before.splitlines()) - Counter(after.splitlines())).elements())


@RELAXED
@given(files(), clients)
def test_add_leaves_every_other_line(file: Written, client: Client) -> None:
    """A client more; no line but the one that held an inline list of clients is another, no comment is lost."""
    after = add(file.text, "c.yaml", client)
    assert comments(after) == comments(file.text)
    assert [one.name for one in parse(after, "c.yaml").clients] == [*file.names, client.name]
    found = parse(after, "c.yaml").clients[-1]
    assert found.all_keys() == client.all_keys()
    assert (found.models, found.expires, found.tokens_per_minute) == (client.models, client.expires, client.tokens_per_minute)
    assert all(line.startswith("clients:") or "}" in line for line in lines_lost(file.text, after))
    assert ("\r\n" in after) == ("\r\n" in file.text)


@RELAXED
@given(files(min_clients=1), st.data())
def test_rotate_gives_old_keys_an_end_and_leaves_every_other_line(file: Written, data: st.DataObject) -> None:
    """The new key comes first, the others end then or earlier; only lines of this client change, and every comment stays."""
    number = data.draw(st.integers(0, len(file.names) - 1))
    before = parse(file.text, "c.yaml").clients
    after = rotate(file.text, "c.yaml", file.names[number], NEW, END)
    found = parse(after, "c.yaml").clients
    assert comments(after) == comments(file.text)
    assert [*found[:number], *found[number + 1 :]] == [*before[:number], *before[number + 1 :]]
    new, *old = keys_of(found[number])
    assert new == Key(NEW)
    assert [key.sha256 for key in old] == [key.sha256 for key in keys_of(before[number])]
    for key, was in zip(old, keys_of(before[number]), strict=True):
        assert unix_seconds(key.expires or "") == min(unix_seconds(was.expires or END), unix_seconds(END))
    if len(file.own_lines[number]) > 1:
        assert set(lines_lost(file.text, after)) <= set(file.own_lines[number])


@RELAXED
@given(files(min_clients=1), st.data())
def test_rotate_at_once_leaves_the_new_key_alone(file: Written, data: st.DataObject) -> None:
    """Without a time to go on, old keys are gone from the text, too."""
    number = data.draw(st.integers(0, len(file.names) - 1))
    after = rotate(file.text, "c.yaml", file.names[number], NEW, None)
    assert keys_of(parse(after, "c.yaml").clients[number]) == [Key(NEW)]
    for key in range(file.num_keys[number]):
        assert hash_number(number * 10 + key) not in after
    assert set(comments(file.text)) - set(comments(after)) <= {f"# key {number * 10 + key}" for key in range(3)} | {"# its end"}


@RELAXED
@given(files(min_clients=1), st.data())
def test_remove_client_takes_its_lines_alone(file: Written, data: st.DataObject) -> None:
    """Comments outside its lines stay, as do all other clients."""
    number = data.draw(st.integers(0, len(file.names) - 1))
    after = remove_client(file.text, "c.yaml", file.names[number])
    before = parse(file.text, "c.yaml").clients
    assert parse(after, "c.yaml").clients == (*before[:number], *before[number + 1 :])
    own = comments("\n".join(file.own_lines[number]))
    assert Counter(comments(file.text)) - Counter(comments(after)) == Counter(own)


@RELAXED
@given(files(min_clients=1, min_keys=2), st.data())
def test_remove_key_takes_one_key_alone(file: Written, data: st.DataObject) -> None:
    """The key whose hash begins so; comments on other keys stay."""
    number = data.draw(st.integers(0, len(file.names) - 1))
    key = number * 10 + data.draw(st.integers(0, file.num_keys[number] - 1))
    after = remove_key(file.text, "c.yaml", file.names[number], hash_number(key)[:12])
    assert hash_number(key) not in after
    assert len(parse(after, "c.yaml").clients[number].keys) == file.num_keys[number] - 1
    assert set(comments(file.text)) - set(comments(after)) <= {f"# key {key}", "# its end"}


@RELAXED
@given(st.lists(clients, min_size=1, max_size=3, unique_by=lambda client: client.name))
def test_what_is_added_to_a_new_file_can_be_removed_again(several: list[Client]) -> None:
    """Adding and removing leaves the file as it was, but for where `[]` stands."""
    text = NEW_FILE
    for number, client in enumerate(several):
        text = add(text, "c.yaml", Client(name=client.name, keys=(hash_number(number),), models=client.models))
    for client in several:
        text = remove_client(text, "c.yaml", client.name)
    assert text == NEW_FILE


def test_add_writes_what_people_would_write() -> None:
    """A client as in the example file, without what holds anyway."""
    text = add(NEW_FILE, "c.yaml", Client(name="alice", keys=(NEW,)))
    text = add(text, "c.yaml", Client(name="bob", keys=(hash_number(5),), role="ops", models=("demo", "a:b"), tokens_per_minute=7))
    assert text.endswith(
        f"""\
clients:
- name: alice
  keys:
  - {NEW}

- name: bob
  keys:
  - {hash_number(5)}
  role: ops
  tokens_per_minute: 7
  models: [demo, "a:b"]
"""
    )


def test_comments_below_a_client_that_are_indented_belong_to_it() -> None:
    """A note below the last client stays with it, one at the margin stays below the list."""
    text = f"clients:\n- name: a\n  keys: [{hash_number(1)}]\n  # a's note\n# the end\n"
    after = add(text, "c.yaml", Client(name="b", keys=(NEW,)))
    assert after.startswith(text.removesuffix("# the end\n"))
    assert after.endswith("\n# the end\n")


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        (f"clients:\n- name: a\n  keys: &k [{hash_number(1)}]\n", 3, "an anchor"),
        (f"clients:\n- &c\n  name: a\n  keys: [{hash_number(1)}]\n", 2, "an anchor"),
        ("clients:\n- name: a\n  keys: !!seq []\n", 3, "a tag"),
        ("clients:\n- name: a\n  keys: []\n  ? role\n  : ops\n", 4, "a key after `?`"),
        ("clients:\n- name: >-\n    a\n  keys: []\n", 2, "text after `>`"),
        ("%YAML 1.1\n---\nclients: []\n", 1, "a directive"),
        ("clients: []\n...\n", 2, "the mark `...`"),
    ],
)
def test_what_cannot_be_edited_safely_is_refused_with_its_line(text: str, line: int, what: str) -> None:
    """Nothing is guessed; the message says what to do."""
    parse(text, "c.yaml")
    with pytest.raises(ClientsFileError) as caught:
        add(text, "c.yaml", Client(name="b", keys=(NEW,)))
    assert str(caught.value).startswith(f"c.yaml:{line}: here is {what}")
    assert "by hand" in str(caught.value)


TWO = f"clients:\n- name: alice\n  keys: [{hash_number(1)}, {hash_number(2)}]\n- name: bob\n  keys: [{hash_number(3)}]\n"


def test_what_is_not_there_or_there_already_is_said() -> None:
    """Each error names what there is instead, or what to do."""
    cases: list[tuple[Callable[[], str], str]] = [
        (lambda: add(TWO, "c.yaml", Client(name="bob", keys=(NEW,))), "c.yaml:4: there is a client bob already; `convoy keys rotate bob`"),
        (lambda: rotate(TWO, "c.yaml", "alcie", NEW, None), "there is no client alcie, did you mean alice?"),
        (lambda: remove_client(TWO, "c.yaml", "zoe"), "there is no client zoe; see `convoy keys list`"),
        (lambda: remove_key(TWO, "c.yaml", "alice", ""), "2 keys of alice have hashes that begin"),
        (
            lambda: remove_key(TWO, "c.yaml", "alice", "zz"),
            f"no key of alice has a hash that begins with zz; there are: {hash_number(1)[:8]}",
        ),
        (lambda: remove_key(TWO, "c.yaml", "bob", hash_number(3)[:8]), "it is the only key of bob; `convoy keys rotate bob --keep 0`"),
        (lambda: add(TWO + "x: 1\n", "c.yaml", Client(name="zoe", keys=(NEW,))), "c.yaml:6: there is no field `x`"),
        (lambda: add(TWO, "c.yaml", Client(name="zoe", keys=(hash_number(3),))), "in a way that `convoy keys` cannot edit"),
    ]
    for edit, says in cases:
        with pytest.raises(ClientsFileError) as caught:
            edit()
        assert says in str(caught.value)
