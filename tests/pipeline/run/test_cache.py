"""What a change runs again: exactly the stages that it touches."""

import hashlib
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inversion.teacher import load_teacher
from pipeline.recipe.resolve import make_recipe
from pipeline.record import versions
from pipeline.record.manifest import Facts, TeacherRecord
from pipeline.run.build import NAMES, STAGES, run_stage
from pipeline.run.folder import RunFolder
from pipeline.run.job import Job, Places
from pipeline.run.pace import Pace
from pipeline.run.stage import Stage, StageResult
from pipeline.show.display import Display
from tests.pipeline.recipe.test_recipe import BASE, as_toml, recipe_keys, values

TOUCHES = {
    "scheme": "quantize", "inversion": "invert", "basis": "quantize", "calibration": "quantize", "rounding": "quantize",
    "training": "quantize", "export": "export", "engine": "engine", "validation": "validate",
}  # fmt: skip
"""The first stage that a section of the recipe decides."""
LIBRARIES = {
    "torch": {"invert", "quantize", "export", "validate"}, "timm": {"invert", "quantize", "export", "validate"},
    "modelopt": {"quantize"}, "onnx": {"export", "engine"}, "onnxruntime": {"validate"},
    "tensorrt_rtx": {"engine", "validate"}, "python": set(),
}  # fmt: skip


teacher = cache(lambda: load_teacher("digits_vit"))


class Pretended(Stage):
    """A stage that writes the hash of what it was told, and computes nothing."""

    def __init__(self, real: Stage, ran: list[str]) -> None:
        self.real, self.ran = real, ran
        self.name, self.version, self.libraries = real.name, real.version, real.libraries

    def reads(self, job: Job) -> Facts:
        return self.real.reads(job)

    def cost(self, job: Job, pace: Pace) -> float:
        return self.real.cost(job, pace)

    def run(self, job: Job) -> StageResult:
        self.ran.append(self.name)
        path = job.places.folder / f"{self.name}.bin"
        path.write_bytes(hashlib.sha256(self.name.encode()).digest())
        return StageResult([path], {})


def rehearse(folder: Path, overrides: tuple[str, ...] = ()) -> list[str]:
    """The stages that a build with `overrides` runs in `folder`."""
    recipe, ran = make_recipe(BASE, None, overrides), []
    job = Job(recipe, teacher(), Places.run(folder), Display(quiet=True))
    with RunFolder(folder) as run:
        run.begin(recipe.to_dict(), TeacherRecord.of(job.teacher))
        for stage in STAGES:
            run_stage(Pretended(stage, ran), job, run)
    return ran


CHANGES = st.one_of(
    # the section `input` makes the teacher, which is the same in a rehearsal
    st.tuples(st.just("recipe"), st.sampled_from([key for key in recipe_keys() if not key.startswith("input.")])),
    st.tuples(st.just("library"), st.sampled_from(sorted(LIBRARIES))),
    st.tuples(st.just("byte"), st.sampled_from(NAMES)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=CHANGES)
def test_a_change_runs_what_it_touches_and_nothing_else(
    change: tuple[str, str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One recipe value, one library's version, or one flipped byte of an output; twice the same runs nothing."""
    folder, (kind, what) = tmp_path_factory.mktemp("run"), change
    assert rehearse(folder) == list(NAMES)
    assert rehearse(folder) == []
    overrides: tuple[str, ...] = ()
    with monkeypatch.context() as patch:
        if kind == "recipe":
            overrides = (f"{what}={as_toml(values(what)[1])}",)
            expected = NAMES[NAMES.index(TOUCHES[what.partition(".")[0]]) :]
        elif kind == "library":
            whole = versions.versions()
            patch.setattr(versions, "versions", lambda: whole | {what: "99.9"})
            first = min((NAMES.index(name) for name in LIBRARIES[what]), default=len(NAMES))
            expected = NAMES[first:]
        else:
            path = folder / f"{what}.bin"
            path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
            expected = (what,)  # it makes the same bytes again, so that nothing after it changes
        assert rehearse(folder, overrides) == list(expected)
        assert rehearse(folder, overrides) == []
