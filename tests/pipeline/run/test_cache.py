"""What a change runs again: exactly the stages that it touches."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inversion.teacher import load_teacher
from pipeline.recipe.recipe import STAGES, make_recipe
from pipeline.record import versions
from pipeline.run import stages
from pipeline.run.folder import RunFolder, StageResult
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


class Rehearsal(stages.Build):
    """A build whose stages write the hash of what they were told, and nothing is computed."""

    ran: list[str]

    def _stage(self, name: str, work: Any, **inputs: Any) -> dict[str, Any]:  # noqa: ARG002
        def pretend() -> StageResult:
            self.ran.append(name)
            path = self.folder / f"{name}.bin"
            path.write_bytes(hashlib.sha256(repr(sorted(inputs.items())).encode()).digest())
            metrics: dict[str, Any] = {"warnings": [], "engines": [], "basis": {"left_out": []}}
            return StageResult([path], metrics)

        return super()._stage(name, pretend, **inputs)


def rehearse(folder: Path, overrides: tuple[str, ...] = ()) -> list[str]:
    """The stages that a build with `overrides` runs in `folder`."""
    recipe = make_recipe(BASE, None, overrides)
    with RunFolder(folder) as run:
        build = Rehearsal(recipe, load_teacher("digits_vit"), None, "tensorrt_rtx", run, Display(quiet=True))
        build.ran = []
        build.run.begin(recipe.to_dict(), {"name": "digits_vit", "sha256": build.teacher.sha256})
        for stage in (build.invert, build.quantize, build.export, build.engine, build.validate):
            stage()
    return build.ran


CHANGES = st.one_of(
    # the section `input` makes the teacher, which is the same in a rehearsal
    st.tuples(st.just("recipe"), st.sampled_from([key for key in recipe_keys() if not key.startswith("input.")])),
    st.tuples(st.just("library"), st.sampled_from(sorted(LIBRARIES))),
    st.tuples(st.just("byte"), st.sampled_from(STAGES)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=CHANGES)
def test_a_change_runs_what_it_touches_and_nothing_else(
    change: tuple[str, str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One recipe value, one library's version, or one flipped byte of an output; twice the same runs nothing."""
    folder, (kind, what) = tmp_path_factory.mktemp("run"), change
    assert rehearse(folder) == list(STAGES)
    assert rehearse(folder) == []
    overrides: tuple[str, ...] = ()
    with monkeypatch.context() as patch:
        if kind == "recipe":
            overrides = (f"{what}={as_toml(values(what)[1])}",)
            expected = STAGES[STAGES.index(TOUCHES[what.partition(".")[0]]) :]
        elif kind == "library":
            whole = versions.versions()
            patch.setattr(versions, "versions", lambda: whole | {what: "99.9"})
            first = min((STAGES.index(name) for name in LIBRARIES[what]), default=len(STAGES))
            expected = STAGES[first:]
        else:
            path = folder / f"{what}.bin"
            path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
            expected = (what,)  # it makes the same bytes again, so that nothing after it changes
        assert rehearse(folder, overrides) == list(expected)
        assert rehearse(folder, overrides) == []
