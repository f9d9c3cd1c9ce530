"""Tokens, their file, their cache and the tokens of attempts."""

from __future__ import annotations

import base64
import os

import pytest

from tesgate.auth.attempt_tokens import AttemptTokens
from tesgate.auth.authenticator import Authenticator, bearer_token
from tesgate.auth.tokens import TokensFile, hash_token, make_token
from tesgate.errors import ConfigError, Unauthorized
from tesgate.model.caller import ANONYMOUS, Caller
from tesgate.store.tokens import TokenRow

TASK = "01h00000000000000000000000"
LONG = "0123456789abcdef"


def header(value: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", value.encode("latin-1"))]


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("value", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer   abc ", "abc"),
        (basic("user:abc"), "abc"),
        (basic("user:a:b"), "a:b"),
        (basic(":abc"), "abc"),
        (basic("abc"), None),
        (basic("abc:"), None),
        ("Basic %%%", None),
        ("Basic /w==", None),
        ("Bearer", None),
        ("", None),
        ("Negotiate abc", None),
    ],
)
def test_where_a_token_stands(value: str, token: str | None) -> None:
    assert bearer_token(header(value)) == token


def test_attempt_tokens() -> None:
    tokens = AttemptTokens(key=b"k" * 32)
    token = tokens.mint(TASK, 2)
    assert token.startswith(f"tgt_{TASK}.2.")
    assert tokens.verify(token) == (TASK, 2)
    assert tokens.mint(TASK, 2) == token
    assert AttemptTokens(key=b"l" * 32).verify(token) is None
    mac = token.rpartition(".")[2]
    other = token[:-1] + ("A" if token[-1] != "A" else "B")
    for wrong in (
        f"tgt_{TASK}.3.{mac}",
        f"tgt_{TASK}.02.{mac}",
        other,
        token + "x",
        token[:-1],
        "",
        "tgt_",
        token.upper(),
    ):
        assert tokens.verify(wrong) is None, wrong
    with pytest.raises(ConfigError, match="secret_key_file"):
        AttemptTokens(key=b"short")


def test_the_file_in_both_forms(tmp_path) -> None:
    path = tmp_path / "tokens"
    hashed = hash_token("carols-token-0123456789")
    path.write_text(f"# c\nalice:{LONG}a:lab, ops:admin\nbob:{LONG}b\ncarol:sha256${hashed}\nroot:{LONG}d::admin\n")
    plain = TokensFile(path)
    path.write_text(
        f"- {{name: alice, token: {LONG}a, groups: [lab, ops], admin: true}}\n- {{name: bob, token: {LONG}b}}\n"
        f"- {{name: carol, token: 'sha256${hashed}'}}\n- {{name: root, token: {LONG}d, admin: true}}\n"
    )
    for file in (plain, TokensFile(path)):
        alice = file.find(hash_token(LONG + "a"))
        assert alice is not None and (alice.subject, alice.groups, alice.admin) == ("alice", ("lab", "ops"), True)
        carol = file.find(hash_token("carols-token-0123456789"))
        assert carol is not None and (carol.subject, carol.admin, carol.kind) == ("carol", False, "user")
        root = file.find(hash_token(LONG + "d"))
        assert root is not None and root.groups == () and root.admin
        assert file.find(hash_token("other")) is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("alice", "at least 16"),
        ("alice:short", "at least 16"),
        (f":{LONG}", "needs a name"),
        (f"system:{LONG}", "needs a name"),
        (f"alice:{LONG}:g:admin:x", "needs a name"),
        ("alice:tga_0123456789abcdef", "another kind"),
        ("alice:sha256$zz", "64 hex"),
        (f"- {{name: a, token: {LONG}, admn: true}}", "only name"),
        (f"- {{name: a, token: {LONG}, groups: g}}", "groups must be a list"),
        ("- [", "not YAML"),
    ],
)
def test_faults_in_the_file_are_named_without_the_token(tmp_path, text: str, word: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"auth\.tokens_file") as caught:
        TokensFile(path)
    assert word in str(caught.value)
    assert LONG not in str(caught.value)


class Table:
    """A token store of one row that counts its questions."""

    def __init__(self, row: TokenRow | None) -> None:
        self.row = row
        self.asked = 0

    async def find_token(self, hash: str) -> TokenRow | None:
        self.asked += 1
        return self.row


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


ROW = TokenRow("laptop", "user", "alice", ("lab",), False, None)


async def test_a_revocation_is_seen_within_the_cache_time() -> None:
    table, clock = Table(ROW), Clock()
    auth = Authenticator(mode="tokens", store=table, cache_seconds=5, clock=clock)
    asked = header("Bearer tgu_x")
    for _ in range(3):
        assert await auth.caller(asked) == Caller("alice", ("lab",), False)
    assert table.asked == 1
    table.row = None
    clock.now += 4.9
    assert await auth.caller(asked)
    clock.now += 0.2
    for _ in range(2):
        with pytest.raises(Unauthorized):
            await auth.caller(asked)
    table.row = ROW
    assert await auth.caller(asked), "a token that was not found is not remembered as such"


async def test_kinds_do_not_mix() -> None:
    user, agent = make_token("user"), make_token("agent")
    attempt = AttemptTokens(key=b"k" * 32).mint(TASK, 1)
    agent_row = TokenRow("a1", "agent", "a1", (), False, "default")
    auth = Authenticator(mode="tokens", store=Table(agent_row))
    for token in (agent, attempt, user):
        with pytest.raises(Unauthorized) as caught:
            await auth.caller(header(f"Bearer {token}"))
        assert token not in caught.value.msg


async def test_mode_none_looks_at_nothing() -> None:
    table = Table(ROW)
    auth = Authenticator(mode="none", store=table)
    for value in ("Bearer tgu_x", basic("None:None"), "nonsense"):
        assert await auth.caller(header(value)) is ANONYMOUS
    assert await auth.caller([]) is ANONYMOUS
    assert table.asked == 0


async def test_a_changed_file_is_taken_over_and_a_broken_one_is_not(tmp_path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"alice:{LONG}a\n")
    clock = Clock()
    file = TokensFile(path)
    auth = Authenticator(mode="tokens", tokens_file=file, clock=clock)
    assert (await auth.caller(header(f"Bearer {LONG}a"))).subject == "alice"
    path.write_text(f"bobby:{LONG}b\n")
    os.utime(path, (1, 1))
    clock.now += 2
    assert (await auth.caller(header(f"Bearer {LONG}b"))).subject == "bobby"
    with pytest.raises(Unauthorized):
        await auth.caller(header(f"Bearer {LONG}a"))
    path.write_text("broken\n")
    clock.now += 2
    assert (await auth.caller(header(f"Bearer {LONG}b"))).subject == "bobby"
    assert "line 1" in file.fault
