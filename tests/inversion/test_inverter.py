"""The inversion loop: what its images promise, and what a shard depends on."""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from inversion import loop as inversion_loop
from inversion.errors import InputError, NumericalError
from inversion.images import SparseImages
from inversion.inverter import Inverter, invert_into, invert_shard, shard_metadata
from inversion.job import Inversion
from inversion.shards import JOB, PROGRESS
from inversion.sparse import importance, patchify, sparse_forward, take, unpatchify
from inversion.teacher import InputSpec, Teacher
from inversion.tensorfile import read_tensors
from inversion.variation import variation

METHODS = {
    "pri": Inversion(images=12, batch=12, iterations=12),
    "pri, 16 patches by 3": Inversion(images=6, batch=6, iterations=10, division_factor=3),
    "pri, 16 patches by 7": Inversion(images=14, batch=14, iterations=10, division_factor=7),
    "dmi": Inversion(method="dmi", images=3, batch=3, iterations=5),
    "smi": Inversion(method="smi", images=2, batch=2, iterations=301),
}
METHOD = pytest.mark.parametrize("method", METHODS)
QUICK = Inversion(images=12, batch=4, iterations=4, division_factor=2)
"""Three shards of two trajectories."""


def tiny_teacher(channels: int = 1) -> Teacher:
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, channels, num_classes=5, embed_dim=32, depth=2, num_heads=2)
    model = model.eval().requires_grad_(False)
    for weight in model.parameters():
        weight.add_(0.2 * torch.randn_like(weight))
    mean, std = ((0.5,), (0.25,)) if channels == 1 else ((0.5, 0.4, 0.3), (0.2, 0.3, 0.5))
    return Teacher(model, InputSpec((32, 32), mean, std, "bicubic", 1.0, 5), "tiny", "0" * 64)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return tiny_teacher()


def record(patch: pytest.MonkeyPatch, teacher: Teacher, job: Inversion) -> tuple[SparseImages, list[Tensor]]:
    """The first shard; and patches [B, N, C*P*P] of the whole picture at every iteration, as the TV norm sees it."""
    seen: list[Tensor] = []

    def listening(images: Tensor, norm: str) -> tuple[Tensor, Tensor]:
        seen.append(patchify(images, (8, 8)).clone())
        return variation(images, norm)

    patch.setattr(inversion_loop, "variation", listening)
    return invert_shard(teacher, job, 0), seen


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No shift and no flip: a teacher of random weights answers to none of them alike."""
    monkeypatch.setattr(inversion_loop, "draw_offsets", lambda count, *_: torch.zeros(count, 3, dtype=torch.int64))


@cache
def recorded(method: str) -> tuple[SparseImages, list[Tensor]]:
    """The first shard of one of `METHODS`, and its pictures at every iteration."""
    with pytest.MonkeyPatch.context() as patch:
        return record(patch, tiny_teacher(), METHODS[method])


def made(method: str) -> SparseImages:
    return recorded(method)[0]


@METHOD
def test_images_have_the_documented_shape(method: str) -> None:
    """Rows in order of trajectory and stage, one label a trajectory, padding of -1 and 0 at the end of a row."""
    job = METHODS[method]
    images = made(method)
    v = job.images_per_trajectory
    assert images.trajectory.tolist() == [trajectory for trajectory in range(job.trajectories) for _ in range(v)]
    assert images.stage.tolist() == list(range(1, v + 1)) * job.trajectories
    assert bool((images.labels.view(-1, v) == images.labels.view(-1, v)[:, :1]).all())
    live = images.kept >= 0
    assert bool((live.long().diff(dim=1) <= 0).all())
    assert bool((images.kept[~live] == -1).all())
    assert not images.patches[~live].any()
    assert images.patches.shape == (*images.kept.shape, 64)


@pytest.mark.parametrize("method", [name for name in METHODS if "smi" not in name])
def test_images_of_a_trajectory_tile_the_grid(method: str) -> None:
    """The v images of one trajectory share no patch and together hold all of them; K = floor(N / v)."""
    job = METHODS[method]
    images = made(method)
    v = job.images_per_trajectory
    for trajectory in range(job.trajectories):
        kept = images.kept[images.trajectory == trajectory]
        assert sorted(kept[kept >= 0].tolist()) == list(range(16))
        assert (kept >= 0).sum(1).tolist() == [16 // v] * (v - 1) + [16 - (v - 1) * (16 // v)]


def test_smi_keeps_the_published_share() -> None:
    """16 patches pruned by 0.3 at each of four points: 11, 7, 4, 2."""
    images = made("smi")
    assert [len(set(row.tolist())) for row in images.kept] == [2, 2]
    assert images.stage.tolist() == [1, 1]


@METHOD
def test_pixels_are_those_of_real_images(method: str) -> None:
    """Every pixel lies between black and white, in normalised values, and reaches both."""
    images = made(method)
    assert float(images.patches.min()) == (0 - 0.5) / 0.25
    assert float(images.patches.max()) == (1 - 0.5) / 0.25


def test_each_channel_has_its_own_range() -> None:
    """The valid range follows the channel's own mean and deviation."""
    images = invert_shard(tiny_teacher(channels=3), QUICK, 0)
    low, high = images.mosaics().amin((0, 2, 3)), images.mosaics().amax((0, 2, 3))
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.5])
    assert torch.equal(low, (0 - mean) / std)
    assert torch.equal(high, (1 - mean) / std)


@pytest.mark.usefixtures("still")
def test_iterations_make_the_class_likely(teacher: Teacher) -> None:
    """Without augmentation, the teacher is soon sure of the target class of every dense image: by chance its loss is
    1.6. It ends at 0.03 to 0.12, by seed, precision and CPU."""
    images = invert_shard(teacher, Inversion(method="dmi", images=5, batch=5, iterations=60, learning_rate=0.1), 0)
    logits = sparse_forward(teacher.model, images.patches, images.kept.long())
    loss = torch.nn.functional.cross_entropy(logits, images.labels.long())
    assert float(loss) < 0.2


def test_teacher_stays_frozen(teacher: Teacher) -> None:
    """Inversion changes no weight and gives none a gradient."""
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    invert_shard(teacher, QUICK, 0)
    assert all(torch.equal(value, before[key]) for key, value in teacher.model.state_dict().items())
    assert all(weight.grad is None and not weight.requires_grad for weight in teacher.model.parameters())


def test_detached_patches_stop_moving() -> None:
    """From its detachment on, a patch keeps the pixels that its image has; the others go on moving."""
    images, states_of_all = recorded("pri")
    assert len(states_of_all) == 12
    for row in range(len(images)):
        kept, stage = images.kept[row].long(), int(images.stage[row])
        states = [state[int(images.trajectory[row]), kept] for state in states_of_all]
        point = stage * 3  # iterations before this image left
        assert all(torch.equal(state, images.patches[row]) for state in states[point:])
        assert all(not torch.equal(one, other) for one, other in pairwise(states[:point]))


def test_the_most_important_patches_leave_first(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """PRI detaches those active patches that get most attention at that moment, unaugmented, in grid order."""
    scored: list[tuple[Tensor, Tensor, Tensor]] = []

    def listening(model: VisionTransformer, patches: Tensor, kept: Tensor) -> Tensor:
        scored.append((patches.clone(), kept.clone(), importance(model, patches, kept)))
        return scored[-1][2]

    monkeypatch.setattr(inversion_loop, "importance", listening)
    images, states = record(monkeypatch, teacher, replace(METHODS["pri"], precision="float32"))
    assert len(scored) == 3
    for stage, (patches, kept, scores) in enumerate(scored, start=1):
        chosen = scores.topk(4, dim=1).indices
        want = kept.gather(1, chosen).sort(1).values
        assert torch.equal(images.kept[images.stage == stage].long(), want)
        # the next iteration's picture still holds in place what was scored here
        state = states[3 * stage]
        assert torch.equal(state.gather(1, kept.unsqueeze(-1).expand_as(patches)), patches)


def test_pruned_patches_are_held() -> None:
    """A pruned patch stays in sight as it was, and only the active ones move."""
    states = recorded("smi")[1]
    moving = [int((one != other).any(-1).sum()) // 2 for one, other in pairwise(states)]
    assert moving == [16] * 50 + [11] * 50 + [7] * 100 + [4] * 100


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("v", [1, 2])
def test_updates_are_eq_1_with_adam(teacher: Teacher, monkeypatch: pytest.MonkeyPatch, v: int) -> None:
    """Active pixels follow cross-entropy + lambda * TV by Adam, whose moments survive a detachment."""
    job = Inversion(images=3 * v, batch=3 * v, iterations=6, division_factor=v, tv_weight=0.03, precision="float32")
    images, states = record(monkeypatch, teacher, job)
    labels, final = images.labels[::v].long(), images.kept[images.stage == v].long()
    pixels, first, second = states[0].clone(), torch.zeros(()), torch.zeros(())
    for done in range(1, 7):
        kept = torch.arange(16).expand(3, -1) if done <= 6 // v else final
        pixels.requires_grad_()
        logits = sparse_forward(teacher.model, take(pixels, kept), kept)
        entropy = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        (grad,) = torch.autograd.grad(entropy, pixels)
        grad += 0.03 * patchify(variation(unpatchify(pixels.detach(), (4, 4), (8, 8)))[1], (8, 8))
        first, second = 0.5 * first + 0.5 * grad, 0.99 * second + 0.01 * grad**2
        update = 0.25 * (first / (1 - 0.5**done)) / ((second / (1 - 0.99**done)).sqrt() + 1e-8)
        active = torch.zeros(3, 16, 1).scatter(1, kept.unsqueeze(-1), 1)
        pixels = (pixels.detach() - update * active).clamp(-2, 2)
    want = take(pixels, final)
    # Adam divides by the gradient's own size, so that the rounding of gradients near zero shows
    torch.testing.assert_close(images.patches[images.stage == v], want, rtol=1e-3, atol=1e-3)


def test_same_seed_gives_the_same_bytes(teacher: Teacher, tmp_path: Path) -> None:
    """Two runs write equal files; another seed writes others."""
    jobs = {"a": QUICK, "b": QUICK, "c": replace(QUICK, seed=1)}
    files = {
        name: [path.read_bytes() for path in invert_into(teacher, job, tmp_path / name)] for name, job in jobs.items()
    }
    assert files["a"] == files["b"]
    assert all(one != other for one, other in zip(files["a"], files["c"], strict=True))
    assert len(set(files["a"])) == 3


def test_noise_differs_between_trajectories_shards_and_seeds(teacher: Teacher) -> None:
    """No two trajectories of a job, nor of two seeds, start from the same noise."""
    job = replace(QUICK, learning_rate=1e-9, iterations=2)
    jobs = [(job, 0), (job, 1), (replace(job, seed=1), 0)]
    starts = torch.cat([invert_shard(teacher, job, number).mosaics() for job, number in jobs])
    apart = [(one - other).abs().mean() for one, other in combinations(starts, 2)]
    assert len(apart) == 15
    assert min(apart) > 1  # two standard normals are 1.13 apart


def test_a_shard_depends_only_on_its_number(teacher: Teacher, tmp_path: Path) -> None:
    """Shard 1 made alone equals shard 1 of a whole run, whatever the caller's own random state."""
    paths = invert_into(teacher, QUICK, tmp_path / "all")
    torch.manual_seed(99)
    invert_shard(teacher, QUICK, 1).save(tmp_path / "alone")
    assert [path.name for path in paths] == [f"shard-{number:05d}.safetensors" for number in range(3)]
    assert (tmp_path / "alone").read_bytes() == paths[1].read_bytes()


def test_inversion_leaves_the_callers_random_state(teacher: Teacher) -> None:
    """Generators are passed: the global one is not touched."""
    before = torch.get_rng_state()
    invert_shard(teacher, QUICK, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_more_images_only_add_shards(teacher: Teacher) -> None:
    """A larger job of the same batch begins with the same images."""
    more = replace(QUICK, images=20)
    one, other = invert_shard(teacher, QUICK, 2), invert_shard(teacher, more, 2)
    assert torch.equal(one.patches, other.patches)
    assert torch.equal(one.labels, other.labels)
    assert one.metadata == other.metadata


def test_every_class_comes_before_any_repeats(teacher: Teacher) -> None:
    """12 trajectories of 5 classes: two whole rounds in random order, then two of the next."""
    job = Inversion(method="dmi", images=12, batch=5, iterations=1)
    labels = torch.cat([invert_shard(teacher, job, number).labels for number in range(3)]).tolist()
    assert sorted(labels[:5]) == sorted(labels[5:10]) == [0, 1, 2, 3, 4]
    assert len(set(labels[10:])) == 2
    assert labels[:5] != labels[5:10]


def test_shards_that_exist_are_not_made_again(teacher: Teacher, tmp_path: Path) -> None:
    """A second run of the same job touches no file, and an interrupted one makes only what is missing."""
    paths = invert_into(teacher, QUICK, tmp_path)
    whole = [path.read_bytes() for path in paths]
    for path in paths:
        os.utime(path, ns=(0, 0))
    paths[1].unlink()
    assert invert_into(teacher, QUICK, tmp_path) == paths
    assert [path.stat().st_mtime_ns == 0 for path in paths] == [True, False, True]
    assert [path.read_bytes() for path in paths] == whole


def test_other_shards_are_made_again(teacher: Teacher, tmp_path: Path) -> None:
    """A shard that is cut off, or was made by another recipe or teacher, is replaced."""
    want = [path.read_bytes() for path in invert_into(teacher, QUICK, tmp_path / "want")]
    folder = tmp_path / "mixed"
    paths = invert_into(teacher, replace(QUICK, tv_weight=1.0), folder)
    other = replace(
        invert_shard(teacher, QUICK, 1), metadata=shard_metadata(replace(teacher, sha256="1"), QUICK, 1, torch.float32)
    )
    other.save(paths[1])
    paths[2].write_bytes(want[2][:-1])
    assert [path.read_bytes() for path in invert_into(teacher, QUICK, folder)] == want


@pytest.mark.parametrize(
    "change",
    [
        {"iterations": 5},
        {"division_factor": 4},
        {"learning_rate": 0.2},
        {"betas": (0.5, 0.9)},
        {"tv_weight": 0.0},
        {"seed": 1},
        {"method": "dmi"},
        {"batch": 8},
        {"images": 2},
        {"tv_norm": "batch"},
        {"selection": "low"},
        {"classes": (1, 2)},
        {"prior_weight": 0.1, "prior": "resnet18"},
    ],
)
def test_metadata_tells_recipes_apart(teacher: Teacher, change: dict[str, Any]) -> None:
    """Whatever changes a shard's bytes changes its metadata."""
    float32 = torch.float32
    assert shard_metadata(teacher, replace(QUICK, **change), 0, float32) != shard_metadata(teacher, QUICK, 0, float32)


def test_metadata_is_as_documented(teacher: Teacher) -> None:
    """Every key that the format promises is there, as a string that reads as the document says."""
    metadata = invert_shard(teacher, QUICK, 1).metadata
    want = {
        "method": "pri", "grid": "4x4", "patch_size": "8", "channels": "1", "mean": "0.5", "std": "0.25",
        "division_factor": "2", "iterations": "4", "seed": "0", "shard": "1", "teacher_sha256": "0" * 64,
    }  # fmt: skip
    assert want.items() <= metadata.items()
    assert all(isinstance(value, str) for value in metadata.values())


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    """The error names shard and iteration, and no image is written."""
    teacher = tiny_teacher()
    teacher.model.head.weight[2, 3] = torch.nan
    with pytest.raises(
        NumericalError,
        match=r"^3 times, each from other noise, the loss of shard 0 is not finite at iteration 1: lower the learning",
    ):
        invert_into(teacher, QUICK, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [JOB]
    with pytest.raises(NumericalError, match=r"shard 2 is not finite at iteration 1: "):
        invert_shard(teacher, replace(QUICK, iterations=60), 2)


def test_a_shard_is_tried_again_from_other_noise(monkeypatch: pytest.MonkeyPatch, teacher: Teacher) -> None:
    """A loss that is not finite once: the shard comes from other noise, says so, and is the same every time."""
    first = invert_shard(teacher, QUICK, 1)
    start = Inverter.loop

    def poisoned(inverter: Inverter, number: int, attempt: int = 0) -> inversion_loop.Loop:
        loop = start(inverter, number, attempt)
        if attempt == 0:
            loop.canvas.fill_(torch.nan)
            loop.pixels.data.fill_(torch.nan)
        return loop

    monkeypatch.setattr(Inverter, "loop", poisoned)
    again, same = (invert_shard(teacher, QUICK, 1) for _ in range(2))
    assert again.metadata == {**first.metadata, "attempt": "1"}
    assert torch.equal(again.labels, first.labels)
    assert torch.equal(again.patches, same.patches)
    assert not torch.equal(again.patches, first.patches)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"half")])
def test_lost_progress_comes_back(teacher: Teacher, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """The pictures beside the first shard are made again with the same bytes, and so is only that shard."""
    paths = invert_into(teacher, QUICK, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    times = [path.stat().st_mtime_ns for path in paths[1:]]
    damage(tmp_path / PROGRESS)
    invert_into(teacher, QUICK, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert [path.stat().st_mtime_ns for path in paths[1:]] == times


def test_progress_counts_the_whole_job(teacher: Teacher, tmp_path: Path) -> None:
    """Iterations done rise to shards x T, and the loss is a number wherever something was computed."""
    calls: list[tuple[int, float]] = []
    invert_into(teacher, QUICK, tmp_path, lambda _, done, __, loss: calls.append((done, loss)))
    done = [count for count, _ in calls]
    assert done == sorted(done)
    assert done[-1] == 3 * 4
    assert sum(math.isfinite(loss) for _, loss in calls) == 3
    calls.clear()
    invert_into(teacher, QUICK, tmp_path, lambda _, done, __, loss: calls.append((done, loss)))
    assert [count for count, _ in calls] == [4, 8, 12]


def test_written_shards_hold_what_was_inverted(teacher: Teacher, tmp_path: Path) -> None:
    """A file's pixels are the inverted ones in float16, still within the valid range."""
    (path, *_) = invert_into(teacher, QUICK, tmp_path)
    found, inverted = SparseImages.load(path), invert_shard(teacher, QUICK, 0)
    assert torch.equal(found.patches, inverted.patches.half().float())
    assert torch.equal(found.kept, inverted.kept)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_is_recorded(teacher: Teacher, precision: Any) -> None:
    """A shard names the number format of its matrix products, and its pixels stay float32 until they are stored."""
    images = invert_shard(teacher, replace(QUICK, precision=precision), 0)
    assert images.metadata["dtype"] == precision
    assert images.patches.dtype == torch.float32
    assert not torch.equal(images.patches, images.patches.bfloat16().float())
    assert teacher.model.pos_embed.dtype == torch.float32


def test_shards_of_another_machine_count(teacher: Teacher, tmp_path: Path) -> None:
    """With automatic precision, a run goes on from shards of either; where one is asked for, only with those."""
    paths = invert_into(teacher, replace(QUICK, precision="bfloat16"), tmp_path)
    foreign = [path.read_bytes() for path in paths]
    invert_into(teacher, QUICK, tmp_path)
    assert [path.read_bytes() for path in paths] == foreign
    invert_into(teacher, replace(QUICK, precision="float32"), tmp_path)
    assert all(path.read_bytes() != old for path, old in zip(paths, foreign, strict=True))


def test_progress_shows_every_detachment(teacher: Teacher, tmp_path: Path) -> None:
    """Whole pictures at each detachment point: what leaves there is in them, and what left earlier no longer moves."""
    (path, *_) = invert_into(teacher, Inversion(images=12, batch=12, iterations=8), tmp_path)
    images = SparseImages.load(path)
    tensors, metadata = read_tensors(tmp_path / PROGRESS, "patch-rebirth.progress/1", "")
    assert tensors["canvas"].shape == (4, 3, 1, 32, 32)
    assert tensors["trajectory"].tolist() == [0, 1, 2]
    assert metadata["teacher_sha256"] == "0" * 64
    for row in range(len(images)):
        stage, kept = int(images.stage[row]), images.kept[row].long()
        states = [patchify(canvas, (8, 8))[int(images.trajectory[row]), kept] for canvas in tensors["canvas"].float()]
        assert all(torch.equal(state, images.patches[row]) for state in states[stage - 1 :])
        assert all(not torch.equal(state, images.patches[row]) for state in states[: stage - 1])


def test_out_of_memory_only_slows_down(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a batch does not fit, half as many images pass the model at once, and the shard is the same."""
    job = replace(QUICK, images=16, batch=16, precision="float32")
    want = invert_shard(teacher, job, 0)
    rows: list[int] = []

    def narrow(model: VisionTransformer, tokens: Tensor) -> Tensor:
        rows.append(len(tokens))
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("as a GPU of two images would")
        return model.forward_head(model.norm(model.blocks(tokens)))

    monkeypatch.setattr(inversion_loop, "classify_lean", narrow)
    found = invert_shard(teacher, job, 0)
    assert rows[:3] == [8, 4, 2]
    assert torch.equal(found.kept, want.kept)
    # the kernels of another batch size sum in another order, and Adam divides by the gradient's own size
    torch.testing.assert_close(found.patches, want.patches, rtol=0, atol=0.02)


@pytest.mark.parametrize(("selection", "first"), [("top", range(4)), ("low", None), ("random", None)])
def test_selection_decides_what_leaves(teacher: Teacher, selection: Any, first: range | None) -> None:
    """`top` detaches the picture's first rows; every strategy tiles the grid, and no two agree."""
    job = replace(METHODS["pri"], selection=selection)
    images, attentive = invert_shard(teacher, job, 0), made("pri")
    assert not torch.equal(images.kept, attentive.kept)
    for trajectory in range(job.trajectories):
        kept = images.kept[images.trajectory == trajectory]
        assert sorted(kept.flatten().tolist()) == list(range(16))
        assert first is None or kept[0].tolist() == list(first)


def test_low_selection_is_the_reverse_of_attention(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the first detachment both see the same, then one takes the most important patches, the other the least."""
    monkeypatch.setattr(inversion_loop, "importance", lambda _model, _patches, kept: kept.float() + (kept == 3) * 100)
    left = {
        name: invert_shard(teacher, replace(METHODS["pri"], selection=name), 0).kept[::4].unique().tolist()
        for name in ("attention", "low")
    }
    assert left == {"attention": [3, 13, 14, 15], "low": [0, 1, 2, 4]}


def test_classes_may_be_chosen(teacher: Teacher) -> None:
    """Only the classes asked for are inverted, each once before any comes again."""
    labels = invert_shard(teacher, Inversion(method="dmi", images=4, iterations=1, classes=(4, 1)), 0).labels.tolist()
    assert sorted(labels[:2]) == sorted(labels[2:]) == [1, 4]


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_out_of_range_are_refused(teacher: Teacher, label: int, tmp_path: Path) -> None:
    """A class that the teacher does not have stops before anything is made."""
    with pytest.raises(InputError, match=rf"^class {label} is not one of 'tiny': take 0 to 4\.$"):
        invert_into(teacher, replace(QUICK, classes=(0, label)), tmp_path / "new")
    assert not (tmp_path / "new").exists()
