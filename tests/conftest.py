import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from streamlstm import compiled

compiled.choose_folder()  # before anything imports numba

from streamlstm.metrics import Metrics  # noqa: E402
from streamlstm.web import Server  # noqa: E402

settings.register_profile("streamlstm", deadline=None)  # a first call may compile
settings.load_profile("streamlstm")


@pytest.fixture
def server() -> Iterator[Server]:
    """Of the metrics of nothing."""
    server = Server(Metrics(), "127.0.0.1", 0)
    yield server
    server.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """In CI all that tests need is there: a skip for want of a program is a failure."""
    report = yield
    wants = any(of in str(report.longrepr) for of in ("not installed", "not allowed"))
    if os.environ.get("CI_STREAMLSTM") and report.skipped and wants:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


FIRST = (
    "test_jit.py",  # compiles what a daemon needs
    "test_house.py",  # needs none of it meanwhile
    "test_cpu.py",  # compiles kernels of its own
    "test_cuda.py",
    "test_crash.py",
    "test_cli.py",
    "test_engine.py",
    "test_onnx.py",
    "test_keras.py",
    "test_from_keras.py",
    "test_train.py",
    "test_demo.py",
    "test_service.py",
    "test_replay.py",
    "test_snapshot.py",
    "test_reload.py",
    "test_policies.py",
    "test_hostile.py",
    "test_arrow.py",
    "test_schemas.py",
    "test_refit.py",
    "test_codec.py",
    "test_overload.py",
    "test_systemd.py",
)
"""What takes longest. Whatever two workers need at once, both would compile."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first, so that two workers that take a file each end together."""
    place = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(FIRST)))
