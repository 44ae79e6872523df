from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.clients.declared import Key, Limits, unix_seconds
from services.clients.reading import ClientsFileError, parse, read
from services.clients.secrets import hash_of, new_key
from tests.unit.clients.written import Written, files, hash_number

ROOT = Path(__file__).resolve().parents[3]
RELAXED = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ONE, TWO = hash_number(1), hash_number(2)
HEAD = f"clients:\n- name: alice\n  keys: [{ONE}]\n"
EMPTY_KEY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

WRONG = [
    ("", 1, "the top must hold `clients:`"),
    ("- a\n", 1, "the top must hold `clients:`"),
    ("limits: {}\n", 1, "missing required field `clients`"),
    ("clients:\n", 1, "clients: must be a list of clients, `[]` for none"),
    ("clients: {a: b}\n", 1, "clients: Expected `array`"),
    ("clients: [a]\n", 1, "clients[0]: Expected `object`, got `str`"),
    ("clients: [\n", 2, "this is not YAML"),
    ("a: b\nclients: []\n\tc: d\n", 3, "this is not YAML"),
    ("a: b\nclients: [\x01]\n", 2, "this is not YAML: control characters"),
    ("clients: []\n---\nclients: []\n", 2, "another document"),
    ("clients: *there\n", 1, "undefined alias"),
    ("clients: " + "[" * 100_000, 1, "nested too deeply"),
    ("- " * 100_000, 1, "nested too deeply"),
    ("clients: &a [*a]\n", 1, "nested too deeply"),
    ("clients: []\nclient: []\n", 2, "there is no field `client`, did you mean `clients`?"),
    (HEAD + "  rol: ops\n", 4, "clients[0]: there is no field `rol`, did you mean `role`?"),
    (HEAD + "  role: ops\n  role: user\n", 5, "`role` stands twice"),
    (HEAD + "  role: admin\n", 4, "clients[0].role: must be user or ops, got 'admin'"),
    (HEAD + "  max_priority: highest\n", 4, "must be high, normal or low"),
    (HEAD + "  tokens_per_minute: 0\n", 4, "tokens_per_minute: must be a whole number from 1"),
    (HEAD + "  tokens_per_minute: " + "9" * 5000 + "\n", 4, "tokens_per_minute: must be a whole number from 1"),
    (HEAD + "  max_concurrent_requests: many\n", 4, "max_concurrent_requests: must be a whole number from 1"),
    (HEAD + "  models: []\n", 4, "models"),
    (HEAD + "  models:\n  - ok\n  - not ok\n", 6, "models[1]: must be model ids, got 'not ok'"),
    (HEAD + "  expires: tomorrow\n", 4, "expires: must be a date such as 2027-01-31"),
    (HEAD + "  expires: 2027-02-30\n", 4, "client alice expires 2027-02-30, which is no date"),
    (HEAD + "  class: gold\n", 4, "the class gold, which `limits:` does not declare; there are: standard"),
    (HEAD + f"- name: alice\n  keys: [{TWO}]\n", 4, "there is another client alice in line 2"),
    (HEAD + f"- name: bob\n  keys:\n  - {TWO}\n  - {ONE}\n", 7, "client bob has a key that stands in line 3, too"),
    (f"clients:\n- name: a\n  keys:\n  - {ONE}\n  - {{sha256: {TWO}, expires: 2027-13-01}}\n", 5, "which is no date"),
    (f"clients:\n- name: a\n  keys:\n  - {EMPTY_KEY}\n", 4, "the hash of an empty key"),
    ('clients:\n- keys: []\n  name: "alice\\n"\n', 3, "name: must be a name of letters"),
    ("clients:\n- keys: []\n  name: al ice\n", 3, "name: must be a name of letters"),
    ("clients:\n- keys: []\n", 2, "missing required field `name`"),
    (
        "limits:\n  a: {requests_per_minute: 1, burst: 1}\n  b: {requests_per_minute: 1, burst: 0}\nclients: []\n",
        3,
        "limits.b.burst: must be",
    ),
    ("limits:\n  a:\n    requests_per_minute: 1\nclients: []\n", 3, "limits.a: Object missing required field `burst`"),
    (
        "limits:\n  a:\n    requests_per_minute: 1\n    burts: 1\nclients: []\n",
        4,
        "limits.a: there is no field `burts`, did you mean `burst`?",
    ),
    ("limits:\n  -a: {requests_per_minute: 1, burst: 1}\nclients: []\n", 2, "a class must have a name of letters"),
    ("limits: 5\nclients: []\n", 1, "limits: must be classes of limits"),
]


@pytest.mark.parametrize(("text", "line", "what"), WRONG, ids=[what[:50] for _, _, what in WRONG])
def test_what_is_wrong_is_one_line_with_file_line_and_reason(text: str, line: int, what: str) -> None:
    """The message leads to the place."""
    with pytest.raises(ClientsFileError) as caught:
        parse(text, "c.yaml")
    assert str(caught.value).startswith(f"c.yaml:{line}: "), caught.value
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    [
        "keys: [KEY]",
        "keys: [{sha256: KEY}]",
        "keys: [{KEY: 1}]",
        "keys: KEY",
        "keys: []\n  KEY: 1",
        "keys: []\n  role: KEY",
        "keys: {KEY: 1}",
    ],
)
def test_a_key_where_a_hash_belongs_is_not_repeated(place: str) -> None:
    """The message goes into logs."""
    key = new_key()
    with pytest.raises(ClientsFileError) as caught:
        parse(f"clients:\n- name: alice\n  {place.replace('KEY', key)}\n", "c.yaml")
    assert key not in str(caught.value)
    assert key.removeprefix("sk-convoy-") not in str(caught.value)


@RELAXED
@given(st.one_of(st.text(), st.text("clients: []{}-&*!|>%\"'\n#namekys?1", max_size=60).map(lambda text: "clients:" + text)))
def test_any_text_is_clients_or_an_error_with_a_line(text: str) -> None:
    """Nothing else comes out, whatever is in the file."""
    try:
        parse(text, "c.yaml")
    except ClientsFileError as error:
        name, line, reason = str(error).split(":", 2)
        assert name == "c.yaml"
        assert 1 <= int(line) <= text.count("\n") + text.count("\r") + text.count("\x85") + text.count("\u2028") + text.count("\u2029") + 2
        assert reason.strip()


@RELAXED
@given(files(min_clients=1), st.data())
def test_a_file_with_one_mistake_is_refused_at_its_line(file: Written, data: st.DataObject) -> None:
    """However it is written."""
    number = data.draw(st.integers(0, len(file.names) - 1))
    text = file.text.replace(f"name: client-{number}", f"name: client+{number}")
    line = next(index for index, line in enumerate(text.splitlines(), 1) if "client+" in line)
    with pytest.raises(ClientsFileError, match=rf"^c\.yaml:{line}: clients\[{number}\]\.name: must be a name"):
        parse(text, "c.yaml")


def test_the_example_can_be_used_as_it_lies() -> None:
    """It names every field."""
    found = read(ROOT / "clients.example.yaml")
    alice, prometheus = found.clients
    assert found.classes() == {"standard": Limits(300, 30), "batch": Limits(60, 5)}
    assert (alice.name, alice.role, alice.models, alice.max_concurrent_requests) == ("alice", "user", ("demo",), 8)
    assert alice.all_keys() == [Key("97c24b4b099c2580bb0019397e0e431f43b21a920a6f071ba74b5587a59760a2", "2099-12-31")]
    assert prometheus.all_keys()[0].expires == "2099-06-30"


def test_a_name_may_look_like_a_number_and_a_hash_may_have_no_letter() -> None:
    """What YAML would take for a number is text where text belongs."""
    found = parse(f"clients:\n- name: 123\n  keys: [{'1' * 64}]\n  models: [7, 2027-01-31]\n  tokens_per_minute: '5'\n", "c.yaml").clients[
        0
    ]
    assert (found.name, found.all_keys(), found.models, found.tokens_per_minute) == ("123", [Key("1" * 64)], ("7", "2027-01-31"), 5)


def test_a_key_ends_with_its_client() -> None:
    """The earlier end counts, zones considered."""
    text = f"clients:\n- name: a\n  keys: [{ONE}, {{sha256: {TWO}, expires: 2027-01-31T01:00+02:00}}]\n  expires: 2027-01-31\n"
    assert [key.expires for key in parse(text, "c.yaml").clients[0].all_keys()] == ["2027-01-31", "2027-01-31T01:00+02:00"]
    assert unix_seconds("2027-01-31") == unix_seconds("2027-01-31T02:00:00+02:00") == unix_seconds("2027-01-31 00:00Z") == 1801353600


def test_bytes_that_are_no_text_are_refused_or_read(tmp_path: Path) -> None:
    """In a comment they do no harm; elsewhere the line is named."""
    path = tmp_path / "c.yaml"
    path.write_bytes(b"# caf\xe9\nclients: []\n")
    assert read(path).clients == ()
    path.write_bytes(b"clients:\n- keys: []\n  name: caf\xe9\n")
    with pytest.raises(ClientsFileError, match=r"^c\.yaml:3: "):
        read(path)


def test_keys_are_long_random_and_known_by_their_sha256() -> None:
    """The hash is what `printf %s KEY | sha256sum` prints."""
    assert len({new_key() for _ in range(100)}) == 100
    assert all(key.startswith("sk-convoy-") and len(key) == 53 for key in (new_key() for _ in range(100)))
    assert hash_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
