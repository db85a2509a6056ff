import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from streamlstm.config import Config, load_config, options

DEPLOY = Path(__file__).parent.parent / "deploy"
TOML = DEPLOY / "streamlstm.toml"
UNIT = DEPLOY / "streamlstm.service"
DEFAULT = re.compile(r"^#(\w+ = .*)$", re.MULTILINE)


def test_the_config_loads_as_it_is() -> None:
    config = load_config(TOML, environ={})
    assert str(config.checkpoint.path).startswith("/var/lib/streamlstm/")


def test_every_option_is_shown_with_its_default(tmp_path: Path) -> None:
    bare = re.sub(r"^(?!#|\[).+\n", "", TOML.read_text(), flags=re.MULTILINE)
    shown = tomllib.loads(DEFAULT.sub(r"\1", bare))
    names = {"model"} | {f"{table}.{key}" for table, keys in shown.items() for key in keys}
    assert names == {name for name, _ in options()}
    assert Config.model_validate(shown | {"model": "m"}) == Config(model=Path("m"))


def test_no_option_is_set_that_the_unit_does_not_need() -> None:
    text = re.sub(r"^#.*\n", "", TOML.read_text(), flags=re.MULTILINE)
    assert {key for key in tomllib.loads(text) if tomllib.loads(text)[key]} == {
        "model",
        "checkpoint",
    }


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/streamlstm/bin/streamlstm", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_readme_names_what_the_unit_uses() -> None:
    readme, unit = (DEPLOY / "README.md").read_text(), UNIT.read_text()
    for word in ("/var/lib/streamlstm", "/var/cache/streamlstm", "/etc/streamlstm/streamlstm.toml"):
        assert word in readme
        assert word in unit
    for endpoint in (*Config(model=Path("m")).input.bind, *Config(model=Path("m")).output.bind):
        assert endpoint.removeprefix("tcp://") in readme
