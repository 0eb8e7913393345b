"""The texts in which secrets stand: prose, code, configuration, commands, logs. `{s}` is the secret, `{N}` a name, `{n}` it in lower case.

Owns data only, and how a name is written in other cases.
"""

from __future__ import annotations

import random
import re

# Around a credential that carries its own mark.
AROUND_TOKEN: tuple[str, ...] = (
    "FINDING: the deploy failed with {s} in the job log", "rotate {s}, it was pushed to main", "use `{s}` for the staging runs", "key: {s}", "({s})", "the value was '{s}'.", 'TOKEN="{s}"',
    "export API_KEY={s}", "{s}\n", "curl -H 'Authorization: Bearer {s}' https://api.acme.dev/v1/items", 'curl -s -H "X-Api-Key: {s}" https://api.acme.dev/', "https://api.acme.dev/v1/items?key={s}&page=2",
    '{{"token": "{s}", "user": 7}}', '{{\\"token\\": \\"{s}\\", \\"user\\": 7}}', "client = Client(api_key='{s}', timeout=30)", "const client = new Client({{ token: '{s}' }});", "  token: {s}\n  retries: 3",
    "TOKEN={s} make deploy", "docker run -e TOKEN={s} -p 80:80 image:1.2", "2026-11-20T10:11:12Z ERROR auth failed token={s} status=401", "> quoted: {s}\n> and more", "- {s}\n- other", "| prod | {s} | yes |",
    "login with {s}; then run the tests", "tokens: [{s}, none]", "key={s}, region=eu", "Set it to {s}.", "secret was {s}!", "<token>{s}</token>", "+TOKEN={s}", "-    api_key = \"{s}\"", "# {s}", "env.TOKEN = \"{s}\";",
    "--token {s} --verbose", "--token={s}", "line one\\n{s}\\nline three", "\t{s}\t", "remote: denied for {s}@host", "x={s}",
)  # fmt: skip

# Where a name announces a value without a mark.
NAMED: tuple[str, ...] = (
    "{N}={s}", "export {N}={s}", 'export {N}="{s}"', "{N}='{s}' ./run.sh", "set {N}={s}", '$env:{N} = "{s}"', "ENV {N}={s}", "ENV {N} {s}", "ARG {N}={s}", "docker run --rm -e {N}={s} image:2",
    'docker run -e "{N}={s}" image', "{n}: {s}", '{n}: "{s}"', "  {n}: '{s}'  # prod", '"{n}": "{s}",', '{{"{n}": "{s}"}}', '{{\\"{n}\\": \\"{s}\\"}}', '{n} = "{s}"', "{n} = '{s}'", '{n}: str = "{s}"',
    'const {c} = "{s}";', "let {c} = '{s}';", '{c}: "{s}",', 'private static final String {N} = "{s}";', 'const {N}: &str = "{s}";', '{c} := "{s}"', "'{n}' => '{s}',", ":{n} => '{s}'", "define('{N}', '{s}');",
    'os.environ["{N}"] = "{s}"', "os.environ['{N}']='{s}'", 'process.env.{N} = "{s}"', 'os.Setenv("{N}", "{s}")', "config.set('{n}', '{s}')", "--{k} {s}", "--{k}={s}", '--{k} "{s}"', "app.{d}={s}",
    "- name: {N}\n  value: {s}", '- name: {N}\n  value: "{s}"', '{{"name": "{N}", "value": "{s}"}}', '<add key="{c}" value="{s}" />', "<{c}>{s}</{c}>", 'variable "{n}" {{ default = "{s}" }}', "gh secret set: {N}={s}",
    "{N}={s} python main.py", "STATUS: deployed with {N}={s} on eu-1", "The log has `{N}={s}` in it, please rotate", "{n} is {s}", "Client({n}='{s}', timeout=3)", "Client({n}=\"{s}\")", "[error] config {{{n}: {s}, retries: 3}}",
    "+{N}={s}", "-  {n}: {s}", "set -gx {N} {s}", "{N} = {s}", "{n}={s}&page=2",
)  # fmt: skip

PASSWORD_NAMES: tuple[str, ...] = (
    "PASSWORD", "DB_PASSWORD", "POSTGRES_PASSWORD", "MYSQL_ROOT_PASSWORD", "REDIS_PASSWORD", "SMTP_PASSWORD", "ADMIN_PASSWORD", "DATABASE_PASSWORD", "LDAP_BIND_PASSWORD", "RABBITMQ_DEFAULT_PASS",
    "PGPASSWORD", "FTP_PASS", "SSH_PASSPHRASE", "KEYSTORE_PASSWORD", "SPRING_DATASOURCE_PASSWORD", "SUDO_PASSWD", "DB_PWD", "VPN_PASSWORD", "MAIL_PASSWORD", "BACKUP_PASSPHRASE",
)  # fmt: skip

PASSWORD_USES: tuple[str, ...] = (
    "postgres://app:{s}@db.internal:5432/app", "mysql://root:{s}@10.0.0.5/shop", "mongodb+srv://svc:{s}@cluster0.ab1cd.mongodb.net/prod", "redis://:{s}@cache:6379/0", "amqp://guest:{s}@mq:5672/%2f",
    "https://deploy:{s}@git.acme.dev/team/repo.git", "ftp://user1:{s}@files.acme.dev/", "DATABASE_URL=postgresql+asyncpg://app:{s}@db/app", "Server=db;Database=shop;User Id=sa;Password={s};Encrypt=true",
    "Data Source=db;uid=sa;pwd={s}", "host=db port=5432 user=app password={s} dbname=app", "jdbc:mysql://db/shop?user=app&password={s}", "mysql -u root -p{s} shop", "sshpass -p {s} ssh deploy@web1",
    "sshpass -p '{s}' scp a b:", "curl -u admin:{s} http://jenkins:8080/api", "curl --user 'admin:{s}' https://nexus/x", "redis-cli -h cache -a {s} ping", "docker login -u bot -p {s} registry.acme.dev",
    "PGPASSWORD={s} psql -h db", "ALTER USER app WITH PASSWORD '{s}';", "CREATE USER app IDENTIFIED BY '{s}';", "machine api.acme.dev\n  login bot\n  password {s}", "machine api.acme.dev login bot password {s}",
    "the password is {s}", "password for staging is {s}", "db password: {s}", "Password: {s}", "pw: {s}", "openssl rsa -passin pass:{s} -in key.pem", "echo {s} | sudo -S apt update", "db:5432:app:app:{s}",
    "smbclient //nas/share -U bob%{s}", "htpasswd -b .htpasswd bob {s}", "<password>{s}</password>", "--password {s}", "wget --password={s} ftp://x/y", "requests.get(url, auth=None, password='{s}')", "login(user='bob', password=\"{s}\")",
)  # fmt: skip


def in_cases(name: str) -> dict[str, str]:
    """The name as a variable, in snake, kebab, dotted and camel case."""
    words = name.lower().split("_")
    return {
        "N": name,
        "n": "_".join(words),
        "k": "-".join(words),
        "d": ".".join(words),
        "c": words[0] + "".join(w.capitalize() for w in words[1:]),
    }


def put(template: str, secret: str, name: str = "") -> str:
    """The surrounding with the secret and the name in place; braces of the secret are left alone."""
    fields = in_cases(name) | {"s": secret}
    return re.sub(r"\{\{|\}\}|\{(\w)\}", lambda m: fields[m[1]] if m[1] else m[0][0], template)


def with_prose(text: str, rng: random.Random) -> str:
    """The text within what an agent might write around it."""
    before = (
        "",
        "FINDING: ",
        "STATUS: [acme/shop branch:main] ",
        "Log of run 4821:\n",
        "Note for whoever picks this up:\n\n",
        "QUESTION: why does this fail?\n```\n",
    )
    after = (
        "",
        "\nthe retry came after 30 s and 3 attempts",
        "\n```\n",
        "\nSee src/billing/retry.py:120.",
        " ",
        "\n\nDone in 4f5a9c2.",
    )
    return rng.choice(before) + text + rng.choice(after)
