"""config.toml: defaults without it, a sentence for every mistake in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmesh.core.config import Config, load_config
from agentmesh.core.errors import InvalidInput
from agentmesh.core.units import DAY_MS, HOUR_MS


def test_without_a_file_everything_has_its_default(tmp_path: Path) -> None:
    config = load_config(tmp_path / "config.toml")
    assert config == Config()
    assert config.idle_exit_ms == 2 * DAY_MS


def test_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('name = "ada"\nconsole_port = 4000\nidle_exit = "12h"\n')
    config = load_config(path)
    assert (config.name, config.console_port, config.idle_exit_ms) == ("ada", 4000, 12 * HOUR_MS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('nmae = "ada"', "nmae"),
        ("console_port = 70000", "console_port"),
        ('console_port = "x"', "console_port"),
        ('idle_exit = "soon"', "soon"),
        ("name =\nport = 1", "line 1"),
    ],
)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=said) as caught:
        load_config(path)
    assert str(path) in caught.value.message


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput):
        load_config(path)
