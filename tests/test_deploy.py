import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from streamlstm.config import Config, load_config, options

DEPLOY = Path(__file__).parent.parent / "deploy"
TOML = DEPLOY / "streamlstm.toml"
UNIT, TEMPLATE = DEPLOY / "streamlstm.service", DEPLOY / "streamlstm@.service"
INSTALL = DEPLOY / "install.sh"
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


def test_the_readme_tells_defaults_as_they_are() -> None:
    readme = (DEPLOY.parent / "README.md").read_text()
    table = readme.partition("| option | default | what |\n")[2].partition("\n\n")[0]
    rows = [line.split(" | ") for line in table.splitlines()[1:]]
    assert len(rows) > 10
    for names, defaults, _ in rows:
        told = re.findall("`(.+?)`", defaults)
        for at, name in enumerate(re.findall("`(.+?)`", names)):
            if name != "model":
                shown = tomllib.loads(f"{name} = {told[min(at, len(told) - 1)]}")
                config = Config.model_validate(shown | {"model": "m"})
                assert config == Config(model=Path("m")), name


def test_no_option_is_set_that_the_unit_does_not_need() -> None:
    text = re.sub(r"^#.*\n", "", TOML.read_text(), flags=re.MULTILINE)
    assert {key for key in tomllib.loads(text) if tomllib.loads(text)[key]} == {
        "model",
        "checkpoint",
    }


def units(folder: Path, *drop_ins: str) -> list[Path]:
    """As `install.sh` puts them, with a program that is there."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    found = []
    for unit in (UNIT, TEMPLATE):
        found.append(folder / unit.name)
        found[-1].write_text(
            unit.read_text().replace("/opt/streamlstm/bin/streamlstm", "/bin/true")
        )
        for name in drop_ins:
            (folder / f"{unit.name}.d").mkdir()
            shutil.copy(DEPLOY / name, folder / f"{unit.name}.d")
    return found


@pytest.mark.parametrize("drop_ins", [(), ("gpu.conf",)])
def test_systemd_takes_the_units(tmp_path: Path, drop_ins: tuple[str, ...]) -> None:
    for unit in units(tmp_path, *drop_ins):
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(("most", "drop_ins"), [(1.5, ()), (1.8, ("gpu.conf",))])
def test_there_is_little_that_the_units_leave_open(
    tmp_path: Path, most: float, drop_ins: tuple[str, ...]
) -> None:
    for unit in units(tmp_path, *drop_ins):
        said = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", unit],
            capture_output=True, text=True, check=True, env=os.environ | {"LANG": "C.UTF-8"},
        ).stdout  # fmt: skip
        found = re.search(r"Overall exposure level for .*: ([\d.]+)", said)
        assert found
        assert float(found[1]) <= most, said
        assert bool(drop_ins) == ("char-nvidia-uvm" in said)


def test_the_unit_of_instances_is_that_of_one_but_for_their_names() -> None:
    one = UNIT.read_text()
    for name, of_instance in (
        ("streamlstm, a", "streamlstm of %i, a"),
        ("/etc/streamlstm/streamlstm.toml", "/etc/streamlstm/%i.toml"),
        ("Directory=streamlstm\n", "Directory=streamlstm/%i\n"),
        ("/var/lib/streamlstm", "/var/lib/streamlstm/%i"),
        ("/var/cache/streamlstm", "/var/cache/streamlstm/%i"),
        ("/run/streamlstm", "/run/streamlstm@%i"),
    ):
        assert name in one
        one = one.replace(name, of_instance)
    assert one == TEMPLATE.read_text()


def test_what_stays_off_is_said() -> None:
    """What systemd-analyze finds missing, the unit gives a reason for."""
    text = UNIT.read_text()
    for directive in (
        "LogNamespace", "MemoryHigh", "MemoryDenyWriteExecute", "PrivateNetwork", "IPAddressDeny",
        "ProcSubset", "RootDirectory",
    ):  # fmt: skip
        assert re.search(rf"^#.*{directive}=", text, re.MULTILINE), directive
        assert not re.search(rf"^{directive}=", text, re.MULTILINE), directive


def test_the_script_says_what_it_can_do() -> None:
    done = subprocess.run([INSTALL, "--help"], capture_output=True, text=True, check=True)
    readme = (DEPLOY / "README.md").read_text()
    options = set(re.findall(r"--\w+", done.stdout))
    assert options >= {"--model", "--demo", "--instance", "--uninstall", "--purge"}
    case = INSTALL.read_text().partition("while [")[2].partition("esac")[0]
    assert set(re.findall(r"--\w+", case.replace("--help", ""))) == options
    assert set(re.findall(r"install\.sh .*?(--\w+)", readme)) <= options


def test_readme_names_what_the_unit_uses() -> None:
    readme, unit = (DEPLOY / "README.md").read_text(), UNIT.read_text()
    for word in ("/var/lib/streamlstm", "/var/cache/streamlstm", "/etc/streamlstm/streamlstm.toml"):
        assert word in readme
        assert word in unit
    for endpoint in (*Config(model=Path("m")).input.bind, *Config(model=Path("m")).output.bind):
        assert endpoint.removeprefix("tcp://") in readme
