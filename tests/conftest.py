"""What every test runs under."""

import os
from dataclasses import replace

import pytest

import inversion  # noqa: F401 - first of all: it says how torch's threads wait, before torch is imported

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: a second thread of each would wait for a busy one
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of inversion come last. They are many and quick: after long ones, one worker would wait for another."""
    items.sort(key=lambda item: "inversion" in item.path.parts)


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty of the built-in teacher's digits judge: enough to see that something is judged."""
    from inversion.teacher import digits_vit, input_spec
    from pipeline.pictures.valdata import digits_held_out

    whole = digits_held_out(input_spec(digits_vit()))
    few = list(whole.pictures())[::13]
    monkeypatch.setattr(
        "pipeline.pictures.valdata.digits_held_out", lambda _: replace(whole, count=len(few), pictures=lambda: few)
    )
