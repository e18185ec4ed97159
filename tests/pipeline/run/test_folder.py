"""The run folder: what is unchanged is not run again, what is damaged is, and nothing half done looks done."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from inversion.errors import InputError
from pipeline.record.manifest import MANIFEST, StageRecord, TeacherRecord, load_manifest, write_manifest
from pipeline.record.proof import Verdict
from pipeline.record.versions import PACKAGES
from pipeline.run.folder import RunFolder, product_digest, stage_digest
from pipeline.run.stage import StageResult

RECIPE = {"bits": "w4a8"}
TEACHER = {"name": "t", "sha256": "0", "num_classes": 10, "input_size": [1, 32, 32]}
OURS = TeacherRecord("t", "0", 10, (1, 32, 32))
FINISHED = Path(__file__).parents[1] / "record" / "manifest.json"


def verdict() -> Verdict:
    return load_manifest(FINISHED.parent).verdict


class Work:
    """A stage that writes one file and counts how often it ran."""

    def __init__(self, folder: Path, name: str = "out.bin", content: bytes = b"abc") -> None:
        self.path, self.content, self.runs = folder / name, content, 0

    def __call__(self) -> StageResult:
        self.runs += 1
        self.path.write_bytes(self.content)
        return StageResult([self.path], {"size": len(self.content)})


def once(folder: Path, work: Callable[[], StageResult], inputs: dict[str, Any] | None = None) -> StageRecord:
    with RunFolder(folder) as run:
        run.begin(RECIPE, OURS)
        return run.stage("one", inputs or {"version": 1}, work)


def stored(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


def test_manifest_has_the_keys_that_scripts_rely_on(tmp_path: Path) -> None:
    """Schema 1: recipe, teacher, versions, stages with their outputs, and a verdict once there is one."""
    with RunFolder(tmp_path) as run:
        run.begin(RECIPE, OURS)
        run.stage("one", {"version": 1}, Work(tmp_path))
        assert stored(tmp_path)["validation"] is None
        run.conclude(verdict())
    manifest = stored(tmp_path)
    assert manifest.keys() == {"schema", "recipe", "teacher", "versions", "stages", "validation"}
    assert (manifest["schema"], manifest["recipe"], manifest["teacher"]) == (2, RECIPE, TEACHER)
    assert manifest["versions"].keys() >= {"python", *PACKAGES}
    (stage,) = manifest["stages"]
    assert stage.keys() == {"name", "digest", "seconds", "cached", "outputs", "metrics"}
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of b"abc", FIPS 180-2
    assert stage["outputs"] == [{"path": "out.bin", "sha256": sha256, "bytes": 3}]
    assert manifest["validation"] == json.loads(FINISHED.read_text())["validation"]
    assert load_manifest(tmp_path).verdict == verdict()


def test_an_unchanged_stage_does_not_run_again(tmp_path: Path) -> None:
    """Same inputs, same files: the record on disk, marked as cached, with its metrics."""
    work = Work(tmp_path)
    first, second = once(tmp_path, work), once(tmp_path, work)
    assert work.runs == 1
    assert (first.cached, second.cached) == (False, True)
    assert dataclasses.replace(second, cached=False) == first


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_output_is_made_again(damage: str, tmp_path: Path) -> None:
    """One byte flipped, a file cut short or gone: the stage runs and does not find the damaged file."""
    work = Work(tmp_path)
    once(tmp_path, work)
    if damage == "remove":
        work.path.unlink()
    else:
        work.path.write_bytes({"flip": b"abd", "cut": b"ab"}[damage])

    def resuming() -> StageResult:
        assert not work.path.exists()
        return work()

    record = once(tmp_path, resuming)
    assert work.runs == 2
    assert not record.cached
    assert work.path.read_bytes() == b"abc"


def test_other_inputs_run_the_stage_again(tmp_path: Path) -> None:
    """A changed recipe slice, stage version or consumed digest changes the digest."""
    work = Work(tmp_path)
    told: list[dict[str, Any]] = [{"version": 1}, {"version": 2}, {"version": 2, "images": "x"}]
    for runs, inputs in enumerate(told, start=1):
        once(tmp_path, work, inputs)
        assert work.runs == runs
    assert len(stored(tmp_path)["stages"]) == 1
    assert stage_digest("one", {"a": 1, "b": 2}) == stage_digest("one", {"b": 2, "a": 1}) != stage_digest("two", {})


def test_what_a_stage_made_counts_for_the_next(tmp_path: Path) -> None:
    """A stage that gives other bytes from the same inputs makes those after it run again."""
    before = product_digest(once(tmp_path, Work(tmp_path)))
    assert product_digest(once(tmp_path, Work(tmp_path))) == before
    (tmp_path / "out.bin").unlink()
    assert product_digest(once(tmp_path, Work(tmp_path, content=b"other"))) != before


def test_stages_stay_in_the_order_they_run(tmp_path: Path) -> None:
    """A stage that ran again does not move behind those that it feeds."""
    works = {name: Work(tmp_path, name) for name in ("a", "b", "c")}
    for _ in range(2):
        with RunFolder(tmp_path) as run:
            run.begin(RECIPE, OURS)
            for name, work in works.items():
                run.stage(name, {}, work)
        (tmp_path / "b").unlink()
    assert [stage["name"] for stage in stored(tmp_path)["stages"]] == ["a", "b", "c"]
    assert [work.runs for work in works.values()] == [1, 2, 1]


OUTPUT = {"path": "out.bin", "sha256": "0", "bytes": 3}
RECORD = {"name": "one", "digest": "d", "seconds": 1, "cached": False, "outputs": [OUTPUT], "metrics": {}}
WHOLE = {"schema": 2, "recipe": {}, "teacher": TEACHER, "versions": {}, "stages": [RECORD], "validation": None}


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "3", "\x00\x01", '{"name": "another tool"}', '{"schema": 2, "stages": []}',
        json.dumps({**WHOLE, "schema": 3}), json.dumps({**WHOLE, "stages": None}),
        json.dumps({**WHOLE, "stages": [3]}), json.dumps({**WHOLE, "stages": [{"name": "one"}]}),
        json.dumps({**WHOLE, "stages": [{**RECORD, "outputs": [{"path": "out.bin"}]}]}),
        json.dumps({**WHOLE, "stages": [{**RECORD, "outputs": [{**OUTPUT, "path": "../kept"}]}]}),
        json.dumps({**WHOLE, "stages": [{**RECORD, "outputs": [{**OUTPUT, "path": "/kept"}]}]}),
        json.dumps({**WHOLE, "stages": [{**RECORD, "seconds": "x"}]}), json.dumps({**WHOLE, "teacher": {}}),
        json.dumps({**WHOLE, "validation": 3}), pytest.param("[" * 100_000, id="deep"),
    ],
)  # fmt: skip
def test_a_broken_or_foreign_manifest_runs_everything(content: str, tmp_path: Path) -> None:
    """It is no reason to stop, and no file outside the folder is touched; reading it by itself is refused."""
    (tmp_path / "kept").write_text("kept")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / MANIFEST).write_text(content)
    with pytest.raises(InputError, match=r"holds no manifest\.json of schema 2"):
        load_manifest(folder)
    work = Work(folder)
    assert not once(folder, work).cached
    assert [stage.name for stage in load_manifest(folder).stages] == ["one"]
    assert (tmp_path / "kept").read_text() == "kept"


def test_a_whole_manifest_is_taken(tmp_path: Path) -> None:
    """The refusals above are not refusals of everything."""
    (tmp_path / MANIFEST).write_text(json.dumps(WHOLE))
    assert json.loads(write_manifest(load_manifest(tmp_path))) == WHOLE


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_stage_leaves_no_trace_of_success(error: type[BaseException], tmp_path: Path) -> None:
    """Neither its record nor an earlier verdict stays, what came before does."""
    work = Work(tmp_path)

    def fails() -> StageResult:
        (tmp_path / "half.bin").write_bytes(b"half")
        raise error

    with RunFolder(tmp_path) as run:
        run.begin(RECIPE, OURS)
        run.stage("one", {}, work)
        run.stage("two", {}, Work(tmp_path, "two.bin"))
        run.conclude(verdict())
    with RunFolder(tmp_path) as run:
        run.begin(RECIPE, OURS)
        run.stage("one", {}, work)
        with pytest.raises(error):
            run.stage("two", {"changed": 1}, fails)
    manifest = stored(tmp_path)
    assert [stage["name"] for stage in manifest["stages"]] == ["one"]
    assert manifest["validation"] is None
    with RunFolder(tmp_path) as run:
        run.begin(RECIPE, OURS)
        assert run.stage("one", {}, work).cached
        assert not run.stage("two", {"changed": 1}, Work(tmp_path, "two.bin")).cached


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """While one process works in a folder, another gets one sentence at once; later it gets the folder."""
    code = "import sys; from pathlib import Path; from pipeline.run.folder import RunFolder\n"
    code += "with RunFolder(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with (
            pytest.raises(InputError, match=rf"is in use by process {other.pid}: wait for it, or"),
            RunFolder(tmp_path),
        ):
            pass
        other.kill()
    with RunFolder(tmp_path):  # a lock dies with its process
        pass
    assert not (tmp_path / ".owner").exists()


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    """Files under a temporary name, in the folder or below it."""
    (tmp_path / "images").mkdir()
    left = [tmp_path / ".model.onnx.77.partial", tmp_path / "images/.shard-00000.safetensors.77.partial"]
    for path in left:
        path.write_text("half")
    with RunFolder(tmp_path):
        assert not any(path.exists() for path in left)


@pytest.mark.parametrize("link", ["images", "images/shard-00000.safetensors", "model.onnx"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, link: str) -> None:
    """Nothing behind it is read, written or removed; links within the folder are."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/theirs").write_text("theirs")
    place = tmp_path / "run" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"is a link that leads out of its run folder: remove it"):
        RunFolder(tmp_path / "run").__enter__()
    assert (tmp_path / "elsewhere/theirs").read_text() == "theirs"
    place.unlink()
    place.symlink_to(place)  # in a circle
    with pytest.raises(InputError, match=r"is a link that leads out"):
        RunFolder(tmp_path / "run").__enter__()
    place.unlink()
    place.symlink_to(tmp_path / "run")
    with RunFolder(tmp_path / "run"):
        pass


def test_the_log_tells_what_ran(tmp_path: Path) -> None:
    """JSON lines in `run.log`, each with its time: stages as they begin and end, and what stopped a run."""
    once(tmp_path, Work(tmp_path))
    once(tmp_path, Work(tmp_path))
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path):
        raise KeyboardInterrupt
    lines = [json.loads(line) for line in (tmp_path / "run.log").read_text().splitlines()]
    events = [(line["event"], line.get("cached")) for line in lines if line["event"] != "start"]
    assert events == [("stage begins", None), ("stage is done", False), ("stage is done", True), ("stopped", None)]
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    assert lines[-1]["error"] == "KeyboardInterrupt"


@pytest.mark.parametrize("below", ["", "run"])
def test_an_unwritable_folder_is_refused(below: str, tmp_path: Path) -> None:
    """A file where the folder, or a folder above it, should be."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"is not writable .*: take another with --out"):
        RunFolder(tmp_path / "file" / below).__enter__()
    assert (tmp_path / "file").read_text() == "in the way"


def test_changed_files_are_told(tmp_path: Path) -> None:
    """`require_intact` names the file that is no longer what its stage made."""
    once(tmp_path, Work(tmp_path))
    with RunFolder(tmp_path) as run:
        run.require_intact()
        (tmp_path / "out.bin").write_bytes(b"abd")
        with pytest.raises(InputError, match=r"out\.bin' is not the file that the run made"):
            run.require_intact()
