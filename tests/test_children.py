"""Children run what their parent would, wherever they are begun, and end with it."""

import contextlib
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from streamlstm import children
from tests.daemon import ended


def test_files_where_one_is_begun_are_no_modules(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('this is not the json that was meant')")
    command = [*children.command("streamlstm"), "--version"]
    done = subprocess.run(
        command, cwd=tmp_path, env=children.environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == version("streamlstm")


def test_who_is_to_end_with_its_parent_does() -> None:
    child = (
        "import os, signal; from streamlstm.children import end_with; end_with(os.getppid());"
        " print(os.getpid(), flush=True); signal.pause()"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        pid = int(said.readline())
        process.kill()
        process.wait()
        try:
            assert ended(pid, within=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
