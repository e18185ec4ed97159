"""A batch of trajectories under optimisation: Eq. 1 and Adam on the pixels of the patches that are still active.

What it costs: DeiT-Tiny, 128 images a batch in bfloat16, on 2 cores of an AMD EPYC with torch 2.14.1 (median of n = 3
rounds): PRI v = 4 makes 2.07 iterations/s, so 300 iterations take 2.4 minutes; v = 7 makes 4.00, SMI at 76% 1.14, DMI
0.32. That is 34% to 51% of what the same cores give in one large matrix product, at 193 to 593 MB.
Record: benchmarks/records/2026-11-23_inversion_deit_tiny.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from inversion.augment import draw_offsets, pixels_of, shift_positions, shifted_pixels
from inversion.job import Inversion
from inversion.plainvit import PlainViT
from inversion.sparse import classify_lean, embed_linear, importance
from inversion.teacher import Teacher
from inversion.terms import chosen_prior
from inversion.variation import variation

CPU_TOKENS = 2048
"""Tokens of the images that a CPU takes at once: more would leave its caches, fewer would leave its cores idle."""
GRAPH_WARM_UP = 3


class Loop:
    """`pixels` [B, C, A*P*P] of the active patches at `kept` [B, A], and Adam's state of just these.

    `canvas` [B, C, H*W] is the whole picture. Active patches are written back to it after each update; patches that
    left stay in it as they were, since the active ones see slices of their neighbours after a shift. `first_bad` [] is
    the first update whose loss was not finite, -1 while there is none.

    No step waits for the device, so that on CUDA a whole stage is one graph, replayed.
    """

    def __init__(
        self,
        teacher: Teacher,
        model: PlainViT,
        job: Inversion,
        labels: Tensor,
        generator: Generator,
        most_at_once: int | None = None,
    ) -> None:
        self.model, self.job, self.spec, self.labels = model, job, teacher.spec, labels
        self.geometry = teacher.grid, teacher.patch_size
        self.device, self.dtype = model.pos_embed.device, model.pos_embed.dtype
        spec, batch = teacher.spec, len(labels)
        self.low, self.high = (bound.view(-1, 1).to(self.device) for bound in spec.pixel_bounds())
        noise = torch.randn(batch, spec.channels, *spec.size, generator=generator)
        self.canvas = noise.to(self.device).flatten(2).clamp(self.low, self.high)
        self.offsets = draw_offsets(job.iterations, spec.size, generator).to(self.device)
        self.targets = labels.to(self.device)
        self.prior = chosen_prior(teacher, job)
        self.generator = generator
        self.chunk = most_at_once or batch
        self.done = 0
        self.clock = torch.zeros((), dtype=torch.long, device=self.device)
        self.loss = torch.zeros((), device=self.device)
        self.first_bad = torch.full_like(self.clock, -1)
        self.track(torch.arange(teacher.num_patches, device=self.device).repeat(batch, 1))

    def run(self, iterations: int, after: Callable[[], None]) -> None:
        """`iterations` updates, with `after` called behind each: eager on a CPU, one replayed graph on CUDA."""
        update = self.step
        for iteration in range(iterations):
            if self.device.type == "cuda" and iteration == GRAPH_WARM_UP:
                update = self._captured()
            update()
            self.done += 1
            after()

    def step(self) -> None:
        """One augmented update of Eq. 1."""
        offset = self.offsets.index_select(0, self.clock.view(1)).squeeze(0)
        of_batch = self._batch_gradient(offset)
        self.pixels.grad = torch.empty_like(self.pixels)
        total = self.loss.new_zeros(())
        for rows in self.chunks():
            loss, gradient = self._image_gradient(rows, offset)
            if of_batch is not None:
                gradient += of_batch[rows]
            torch.gather(gradient, 2, self.own[rows], out=self.pixels.grad[rows])
            total += loss
        self.optimizer.step()
        self.canvas.scatter_(2, self.own, self.pixels.clamp_(self.low, self.high))
        self.loss.copy_(total / len(self.kept))
        bad = ~torch.isfinite(total) & (self.first_bad < 0)
        self.clock += 1
        self.first_bad.copy_(torch.where(bad, self.clock, self.first_bad))

    def end_stage(self, count: int) -> tuple[Tensor, Tensor] | None:
        """`count` patches of each image leave: PRI detaches them as an image, which is returned as `detach` does; SMI
        prunes them."""
        if self.job.method == "pri":
            return self.detach(count)
        self.prune(count)
        return None

    def detach(self, count: int) -> tuple[Tensor, Tensor]:
        """Take out the `count` first patches of each image in the order of selection: pixels [B, count, C*P*P] and
        positions [B, count], in grid order."""
        order = self._order()
        return self._leave(leaving=order[:, :count], staying=order[:, count:])

    def prune(self, count: int) -> None:
        """Drop the `count` last patches of each image in the order of selection for good."""
        order = self._order()
        staying = order.shape[1] - count
        self._leave(leaving=order[:, staying:], staying=order[:, :staying])

    def remaining(self) -> tuple[Tensor, Tensor]:
        """Pixels [B, A, C*P*P] and positions [B, A] of the active patches, in grid order."""
        return self.of_strip(self.pixels), self.kept

    def pictures(self) -> Tensor:
        """All pixels as they stand, [B, C, H, W]; those of patches that left as they were then."""
        return self.canvas.unflatten(2, self.spec.size)

    def _batch_gradient(self, offset: Tensor) -> Tensor | None:
        """Gradient [B, C, H*W] of what belongs to the batch as a whole, None where nothing does."""
        gradient = self.prior.gradient(self.canvas, offset) if self.prior else None
        if self.job.tv_norm == "batch":
            of_variation = variation(self.pictures(), "batch")[1].flatten(2).mul_(self.job.tv_weight)
            gradient = of_variation if gradient is None else gradient + of_variation
        return gradient

    def _image_gradient(self, rows: slice, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Summed classification loss [] of the images `rows`, and the gradient [b, C, H*W] of all that is their own."""
        canvas, kept = self.canvas[rows], self.kept[rows]
        moved = shift_positions(kept, offset, *self.geometry)
        source = self._each_channel(shifted_pixels(moved, offset, *self.geometry))
        patches = self.of_strip(canvas.gather(2, source)).to(self.dtype).requires_grad_()
        logits = classify_lean(self.model, embed_linear(self.model, patches, moved)).float()
        loss = F.cross_entropy(logits, self.targets[rows], reduction="sum")
        (found,) = torch.autograd.grad(loss, patches)
        strip = found.unflatten(2, (self.spec.channels, -1)).transpose(1, 2).flatten(2).float()
        gradient = torch.zeros_like(canvas).scatter_(2, source, strip)
        if self.job.tv_norm == "image":
            of_variation = variation(canvas.unflatten(2, self.spec.size), "image")[1]
            gradient.add_(of_variation.flatten(2), alpha=self.job.tv_weight)
        return loss.detach(), gradient

    def _order(self) -> Tensor:
        """Indices [B, A] into the active patches in the order of selection."""
        if self.job.selection == "top":
            return torch.arange(self.kept.shape[1], device=self.device).expand_as(self.kept)
        if self.job.selection == "random":
            return torch.rand(self.kept.shape, generator=self.generator).argsort(1).to(self.device)
        patches = self.of_strip(self.pixels).to(self.dtype)
        scores = torch.cat([importance(self.model, patches[rows], self.kept[rows]) for rows in self.chunks()])
        return scores.argsort(dim=1, descending=self.job.selection == "attention", stable=True)

    def _leave(self, leaving: Tensor, staying: Tensor) -> tuple[Tensor, Tensor]:
        leaving, staying = leaving.sort(1).values, staying.sort(1).values
        gone = self.kept.gather(1, leaving)
        where = self._each_channel(pixels_of(gone, *self.geometry))
        patches = self.of_strip(self.canvas.gather(2, where))
        adam = self.optimizer.state[self.pixels]
        place = self._each_channel(self._within(staying))
        moments = {key: adam[key].gather(2, place) for key in ("exp_avg", "exp_avg_sq")}
        self.track(self.kept.gather(1, staying), {"step": adam["step"], **moments})
        return patches, gone

    def track(self, kept: Tensor, moments: dict[str, Tensor] | None = None) -> None:
        """Optimise the patches at `kept` from here on, with Adam's state as given."""
        self.kept = kept
        self.own = self._each_channel(pixels_of(kept, *self.geometry))
        self.pixels = self.canvas.gather(2, self.own)
        self.optimizer = torch.optim.Adam(
            [self.pixels],
            lr=self.job.learning_rate,
            betas=self.job.betas,
            fused=True,
            capturable=self.device.type == "cuda",
        )
        if moments:
            self.optimizer.state[self.pixels] = moments

    def _captured(self) -> Callable[[], None]:
        """`step` as a CUDA graph: one launch instead of a thousand."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph):
            self.step()
        replay: Callable[[], None] = graph.replay
        return replay

    def chunks(self) -> Iterator[slice]:
        """Rows that pass the model at once: as many parts as come nearest to CPU_TOKENS, of equal size."""
        batch, parts = len(self.kept), 1
        if self.device.type == "cpu":
            parts = max(1, round(self.kept.numel() / CPU_TOKENS))
        rows = min(self.chunk, -(-batch // parts))
        return (slice(start, start + rows) for start in range(0, batch, rows))

    def of_strip(self, strip: Tensor) -> Tensor:
        """[B, C, A*P*P] -> [B, A, C*P*P]."""
        return strip.view(self._strip_shape(len(strip))).transpose(1, 2).flatten(2)

    def _strip_shape(self, batch: int) -> tuple[int, ...]:
        return batch, self.spec.channels, -1, self._patch_area()

    def _patch_area(self) -> int:
        return self.geometry[1][0] * self.geometry[1][1]

    def _within(self, index: Tensor) -> Tensor:
        """Pixel indices [B, K*P*P] into `pixels` of the patches at `index` [B, K] among the active ones."""
        area = self._patch_area()
        return (index.unsqueeze(-1) * area + torch.arange(area, device=self.device)).flatten(1)

    def _each_channel(self, pixels: Tensor) -> Tensor:
        """[B, n] -> [B, C, n]."""
        return pixels.unsqueeze(1).expand(-1, self.spec.channels, -1)
