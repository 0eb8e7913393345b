"""Texts made to be slow to scan: each repeats what some pattern begins with, never what it ends with."""

from __future__ import annotations

PIECES: tuple[str, ...] = (
    "a", "A", "0", "1 ", "+1", "-", ".", "@", "a@", "a@a", "a@a.", "a.", "a-", "a_", ":", "::", "a:", "://", "://a:", "http://a:a", "x://a:b", "=", "a=", "token=", "token: ", "token,", '"token": "', "password='", "password ", "password is ",
    "password for a ", "-p", "--token ", "curl -u ", "curl ", "mysql ", "docker ", "sshpass -p ", "echo ", "htpasswd -b ", "login a password ", "identified by '", "eyJ", "eyJhbGciOiJIUzI1NiJ9.", "-eyJ", ".eyJ", "sk-", "sk-a", "ghp_", "ghp_a", "gh", "glpat-",
    "AKIA", "ASIA ", "SG.", "xoxb-", "hvs.", "s.", "AAAA", "EAA", "0Q~", "+ASt", "AzSe", "://hooks.slack.com/services/", "dp.st.", ".atlasv1.", "A3-", "1/1:", "1234567890:AA", "M.", "Mabc.", "|", "1|", "msh", "_mmk", "-us", "$2b$", "$6$a$",
    "-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\n", "-----BEGIN ", "-----END PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\nAAAAAAAAAAAAAAAAAAAA\n", '"kty" "d": "', "PuTTY-User-Key-File-3: Private-Lines: 1 ", "Authorization: ", "authorization", "Bearer ",
    "Cookie: ", "cookie=a=", "{{", "{{A", "{{A}}", "{{A}}a", "}}", "/home/a", "/home/", "C:\\Users\\", "1.1.1.", "1.2.3.4", "255.255.255.", "2a01:", "2a01::", "aa:", "aa:bb:", "aa-", "0000.", "4111 ", "4111-1111-", "4", "DE00", "DE00 0000 ", "123-45-",
    "(415) ", "415-555-", "020 ", "01 02 ", "+49 (0) ", "name: token, value: ", "name=a value=", "<password>", "variable \"token\" { default = ", "ENV TOKEN ", "mnemonic: abandon ", "mnemonic=", "seed phrase ", "\\n", "\\", '\\"', "'", '"', "`", " ", "\n", "\t", "é", "漢", "\U0001f600", "ſ", "K", "İ",
)  # fmt: skip


def hostile_texts(size: int) -> list[tuple[str, str]]:
    """(name, text of `size` bytes) for each piece, whole and after a head that makes the slow part be tried."""
    heads = ("", "password token key secret ://@ authorization cookie curl 1 ")
    texts = []
    for head in heads:
        for piece in PIECES:
            room = size - len(head.encode())
            texts.append((f"{piece!r} after {len(head)}", head + piece * (room // len(piece.encode()))))
    return texts
