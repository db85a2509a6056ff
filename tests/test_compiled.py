"""Compiled code of one state of the sources is never used for another, and is always kept."""

import os
import pwd
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from numba.core.caching import IndexDataCacheFile
from numba.core.caching import _CacheLocator as Locator

import streamlstm
import streamlstm.jit
from streamlstm import compiled
from tests.daemon import Client, start
from tests.models import random_model_file

CODE = "from streamlstm import compiled; print(compiled.choose_folder())"
PACKAGE = Path(streamlstm.__file__).parent


def folder(package: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=package, capture_output=True, text=True, check=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(package)} | env,
    )  # fmt: skip
    return done.stdout.strip()


def install(to: Path) -> None:
    """Put the package below ``to``."""
    ignored = shutil.ignore_patterns("*.gz", "__pycache__")
    shutil.copytree(PACKAGE, to / "streamlstm", ignore=ignored)


def bound_by_permissions() -> list[str]:
    """What starts a command that permissions bind, even as root."""
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def test_a_changed_source_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    install(tmp_path)
    given = str(tmp_path / "given")
    before = folder(tmp_path, NUMBA_CACHE_DIR=given)
    assert before.startswith(f"{given}/streamlstm-")
    assert folder(tmp_path, NUMBA_CACHE_DIR=given) == before
    assert folder(tmp_path, NUMBA_CACHE_DIR=before) == before, "a child keeps its parent's"
    with (tmp_path / "streamlstm" / "kernels" / "cell.py").open("a") as source:
        source.write("# changed\n")
    assert folder(tmp_path, NUMBA_CACHE_DIR=given) != before


def test_what_other_sources_have_not_used_for_long_goes_once_there_is_something_new(
    tmp_path: Path,
) -> None:
    def used(name: str, days: float) -> Path:
        found = tmp_path / name
        found.mkdir()
        (found / "code.nbc").touch()
        at = time.time() - 86_400 * days
        os.utime(found, (at, at))
        return found

    def there() -> set[Path]:
        return {*tmp_path.iterdir()}

    mine = Path(folder(PACKAGE.parent, NUMBA_CACHE_DIR=str(tmp_path)))
    stays = {mine, used("streamlstm-00000001", 29), used("streamlstm-mine", 99), used("other", 99)}
    goes = used("streamlstm-00000002", 31)
    os.utime(mine, (0, 0))
    folder(PACKAGE.parent, NUMBA_CACHE_DIR=str(tmp_path))
    assert there() == {*stays, goes}
    assert mine.stat().st_mtime > time.time() - 60, "it is in use"
    mine.rmdir()
    folder(PACKAGE.parent, NUMBA_CACHE_DIR=str(tmp_path))
    assert there() == stays


def test_who_imports_a_module_alone_finds_no_stale_code_either(tmp_path: Path) -> None:
    code = "import streamlstm.forecaster, numba; print(numba.config.CACHE_DIR)"
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.strip() == folder(PACKAGE.parent, NUMBA_CACHE_DIR=str(tmp_path))


def test_by_default_it_is_the_users_cache_folder(tmp_path: Path) -> None:
    root, home = PACKAGE.parent, str(tmp_path)
    at = folder(root, XDG_CACHE_HOME=f"{home}/cache")
    assert at.startswith(f"{home}/cache/streamlstm/streamlstm-")
    assert folder(root, HOME=home).startswith(f"{home}/.cache/streamlstm/streamlstm-")


def test_without_a_home_a_folder_must_be_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert compiled.choose_folder().parent == tmp_path
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    with pytest.raises(compiled.NoFolderError, match="set NUMBA_CACHE_DIR"):
        compiled.choose_folder()


@pytest.mark.parametrize("where", ["read-only", "a file"])
def test_a_folder_that_cannot_be_written_to_is_one_line_with_the_mend(
    where: str, tmp_path: Path
) -> None:
    """Not a daemon that compiles at every start, or keeps its code elsewhere."""
    given, launcher = tmp_path / "given", bound_by_permissions()
    if where == "read-only":
        given.mkdir(mode=0o555)
    else:
        given.write_text("a file")
    done = subprocess.run(
        [*launcher, sys.executable, "-m", "streamlstm", "run", "--set", "model=any"],
        capture_output=True, text=True, env=os.environ | {"NUMBA_CACHE_DIR": str(given)},
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"streamlstm run: {given}/streamlstm-")
    assert line.endswith("; set NUMBA_CACHE_DIR to a folder of your own")
    assert done.returncode == 1


def test_what_several_save_at_once_is_what_is_loaded(tmp_path: Path) -> None:
    def save(keys: range) -> None:
        file = IndexDataCacheFile(str(tmp_path), "function", "stamp")
        for key in keys:
            file.save(key, key)

    with ThreadPoolExecutor() as pool:
        assert len([*pool.map(save, [range(k, k + 25) for k in range(0, 100, 25)])]) == 4
    file = IndexDataCacheFile(str(tmp_path), "function", "stamp")
    assert [file.load(key) for key in range(100)] == [*range(100)]


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("left", [b"", bytes(100)], ids=["empty", "zeros"])
def test_what_a_power_cut_left_unsound_is_compiled_again(
    ending: str, left: bytes, tmp_path: Path
) -> None:
    file = IndexDataCacheFile(str(tmp_path), "function", "stamp")
    file.save("key", "code")
    (found,) = tmp_path.glob(f"*.{ending}")
    found.write_bytes(left)
    assert file.load("key") is None
    file.save("key", "code")
    assert file.load("key") == "code"


USES = """
import sys
import numba
import numpy as np
from streamlstm.features import grid_steps

@numba.njit(cache=True)
def theirs(ts):
    return np.median(grid_steps(1, ts))

ts = np.array([0, 1, 5])
print(grid_steps(1, ts).tolist(), "numba.np.arraymath" in sys.modules)
if sys.argv[1:]:
    print(theirs(ts), "numba.np.arraymath" in sys.modules)
"""


def test_what_is_compiled_already_is_loaded_without_what_compiles(tmp_path: Path) -> None:
    """And what compiles is there for the functions of others, compiled already or not."""
    script = tmp_path / "uses.py"
    script.write_text(USES)

    def said(*arguments: str) -> list[str]:
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        command = [sys.executable, str(script), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert said() == ["[1, 1, 4] True"]
    assert said() == ["[1, 1, 4] False"]
    for _ in range(2):
        assert said("theirs") == ["[1, 1, 4] False", "1.0 True"]


def test_a_daemon_whose_code_is_compiled_starts_without_what_compiles(tmp_path: Path) -> None:
    model = random_model_file(tmp_path)
    say = 'import atexit; atexit.register(lambda: print("numba.np.arraymath" in sys.modules))'
    said = ""
    for before in ("", say):
        with start(tmp_path, model, before=before) as daemon:
            assert daemon.stop() == 0
            assert daemon.process.stdout is not None
            said = daemon.process.stdout.read()
    assert said == "False\n"


def bring_code(package: Path, cache: Path, *left_out: str) -> None:
    """What the tests have compiled so far, as if of the package there, less that left out."""
    ours = Path(os.environ["NUMBA_CACHE_DIR"])
    for folder in ("", "kernels", "wire"):
        name, other = (
            Locator.get_suitable_cache_subpath(str(at / folder / "x.py"))
            for at in (PACKAGE, package)
        )
        if (ours / name).exists():
            ignored = shutil.ignore_patterns("*.tmp.*", *left_out)  # those are being written
            to = cache / ours.name / other
            shutil.copytree(ours / name, to, ignore=ignored, dirs_exist_ok=True)


def test_a_read_only_install_compiles_once(tmp_path: Path) -> None:
    root, cache = tmp_path / "root", tmp_path / "cache"
    install(root)
    bring_code(root / "streamlstm", cache, "series.*")
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    launcher = bound_by_permissions()
    refused = subprocess.run(
        [*launcher, "touch", root / "streamlstm" / "x"], capture_output=True, text=True
    )
    assert "Permission denied" in refused.stderr
    model = random_model_file(tmp_path)
    counts = []
    for _ in range(2):
        with (
            start(
                tmp_path, model, launcher=launcher, cwd=root,
                env={"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": ""},
                checkpoint__path=tmp_path / "checkpoint",
            ) as daemon,
            Client(daemon) as client,
        ):  # fmt: skip
            client.tick("a", value=1.0)
            client.predictions(1)
            counts.append(daemon.metric("streamlstm_functions_compiled_total"))
            assert daemon.stop() == 0
            assert f"functions_compiled={counts[-1]:.0f}\n" in daemon.log
    assert counts[0] > 0
    assert counts[1] == 0
    (kept,) = cache.iterdir()
    assert any(kept.rglob("series.*.nbc"))


def test_a_check_can_compile_beforehand_what_a_start_needs(tmp_path: Path) -> None:
    """Of a daemon that has all that one may have, while another serves what is on disk."""
    root, cache = tmp_path / "root", tmp_path / "cache"
    install(root)
    bring_code(root / "streamlstm", cache, "series.*", "parking.*", "checkpoint.*", "segments.*")
    model = random_model_file(tmp_path)
    options: dict[str, object] = {
        "checkpoint.path": tmp_path / "checkpoint",
        "engine.parking": tmp_path / "parked",
        "engine.when_full": "evict",
        "snapshot.bind": "tcp://127.0.0.1:*",
        "output.batch": True,
    }
    env = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": ""}
    sets = [f"--set={name}={value}" for name, value in (options | {"model": model}).items()]

    def compiles() -> bool:
        done = subprocess.run(
            [sys.executable, "-m", "streamlstm", "check", "--compile", *sets],
            cwd=root, env=env, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.endswith("\ncompiled: all that 'streamlstm run' needs here\n")

    assert compiles()
    assert any(cache.rglob("series.*.nbc"))
    assert not (tmp_path / "checkpoint.journal").exists()
    assert not (tmp_path / "parked").exists()
    underlined = {name.replace(".", "__"): value for name, value in options.items()}
    with start(
        tmp_path, model, cwd=root, env={"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": ""},
        **underlined,
    ) as daemon:  # fmt: skip
        assert daemon.metric("streamlstm_functions_compiled_total") == 0
        assert compiles(), "what that daemon has open is left to it"
