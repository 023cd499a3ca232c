"""One head trained on one split: steps, looks at the validation rows, the best weights, and what they are worth.

Resumable at any step: the loader's order, a step's random numbers and the front's standardisation depend on the split
alone, so a run that was killed and went on ends where an undisturbed one ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline import storage
from pipeline.heads.problem import Problem
from pipeline.heads.splits import Places, Split
from pipeline.heads.tasks.base import Batch, Evaluation, Head, Items
from pipeline.heads.team import Team
from pipeline.loader import FeatureLoader
from pipeline.training.loop import Settings, Trainer, cut_log

VALIDATION, BEST = "validation.jsonl", "best-{}.safetensors"
_FITTED_ROWS = 256
"""At most, whose mean and standard deviation stand for those of all training rows."""
_FINGERPRINT = "gatehouse"
OnStep = Callable[[int, dict[str, float]], bool]


@dataclass(frozen=True)
class Fitted:
    """A trained head."""

    network: Head
    finished: bool
    """False where it was told to stop."""
    steps: int
    best_step: int
    """Whose weights the network has: the last step's without validation rows."""
    seconds: float
    """Of training, those of earlier runs too."""


def fit(
    problem: Problem,
    split: Split,
    folder: Path,
    device: str,
    *,
    team: Team | None = None,
    on_step: OnStep = lambda step, logged: False,
) -> Fitted:
    """Train one head, or go on with it.

    Args:
        problem: task, rows and labels.
        split: which rows.
        folder: local, for checkpoint, logs and the best weights.
        device: cpu or cuda.
        team: the processes that train it together; default this one alone.
        on_step: called with the steps done and what was logged; stops the training where it returns True.

    Raises:
        FloatingPointError: the loss is not finite.
        ValueError: the folder's checkpoint is of another head.
    """
    team = team or Team()
    network = _network(problem, split).to(device)
    if not list(network.parameters()):  # nearest neighbours of one group: there is nothing to train
        return Fitted(network, finished=True, steps=0, best_step=0, seconds=0.0)
    loader = _training_loader(problem, split, team)
    stage = _Stage(problem, network, loader, device, team)
    reduce = team.average if team.ranks > 1 else None
    trainer = Trainer(stage, _settings(problem, split), folder, reduce=reduce, writes=team.writes)
    stage.begin(trainer.step)
    looks = _Looks(problem, split, folder, device, team, trainer.step)

    def after(step: int, logged: dict[str, float]) -> bool:
        if looks.due(step):
            looks.look(network, step)
        return team.agree(on_step(step, logged) or looks.exhausted)

    if not looks.exhausted:
        trainer.run(on_step=after)
    finished = team.agree(looks.exhausted or trainer.step >= trainer.settings.steps)
    team.wait()  # for the first one to have written the best weights
    best_step = looks.restore(network, trainer.step)
    return Fitted(network, finished, trainer.step, best_step, trainer.seconds)


def evaluate(problem: Problem, places: Places, network: Head, device: str) -> Evaluation:
    """What a network is worth on some rows."""
    network.eval()
    return problem.task.evaluate(network, _loader(problem, places, shuffle=False), device)


def weights_file(network: Head, fingerprint: str) -> bytes:
    """A head as safetensors, with the fingerprint of what it is."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    return save(tensors, metadata={_FINGERPRINT: fingerprint})


def _settings(problem: Problem, split: Split) -> Settings:
    task = problem.spec.task
    return Settings(
        steps=task.steps,
        batch_size=task.batch_size,
        learning_rate=task.learning_rate,
        warmup=task.steps // 20,
        weight_decay=task.weight_decay,
        ema=None,
        seed=split.seed,
        checkpoint_every=task.validate_every,
    )


def _network(problem: Problem, split: Split) -> Head:
    """With first weights by the split's seed, standardised by its training rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(split.seed)
        network = problem.task.network()
    chosen = split.train[torch.randperm(len(split.train), generator=_generator(split))[:_FITTED_ROWS].numpy()]
    network.front.fit(problem.task.maps(items) for items in _loader(problem, chosen, shuffle=False))
    return network


def _generator(split: Split) -> torch.Generator:
    return torch.Generator().manual_seed(split.seed)


def _training_loader(problem: Problem, split: Split, team: Team) -> FeatureLoader:
    return _loader(problem, split.train, shuffle=True, seed=split.seed, team=team)


def _loader(
    problem: Problem, places: Places, *, shuffle: bool, seed: int = 0, team: Team | None = None
) -> FeatureLoader:
    team, batch_size = team or Team(), problem.spec.task.batch_size
    return FeatureLoader(
        problem.examples.served.subset(places.tolist()),
        min(batch_size, len(places)) if shuffle else batch_size,
        shuffle=shuffle,
        seed=seed,
        # For a test, processes would take longer to start than it takes.
        window=problem.spec.loading.window if shuffle else None,
        workers=problem.spec.loading.workers if shuffle else 0,
        rank=team.rank,
        ranks=team.ranks,
        drop_last=shuffle,
    )


class _Stage:
    """A head in training, as the loop takes it."""

    def __init__(
        self, problem: Problem, network: Head, loader: FeatureLoader, device: str, team: Team
    ) -> None:
        self.name: str = problem.spec.task.type
        self.made_of = problem.digest
        self._task, self._network, self._loader = problem.task, network, loader
        self._device, self._team = device, team
        self._share: int = loader.state_dict()["batch_size"] // team.ranks
        self._items: Iterator[Items] | None = None

    def begin(self, step: int) -> None:
        """Go to the batch of a step."""
        state = self._loader.state_dict()
        epoch, batch = divmod(step, len(self._loader))
        self._loader.load_state_dict(state | {"epoch": epoch, "done": batch * state["batch_size"]})
        self._items = _endless(self._loader)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self._network.named_parameters())

    def draw(self, generator: torch.Generator) -> Batch:
        assert self._items is not None
        # A seed for each row of the whole batch, so that a row is treated alike whichever process computes it.
        seeds = torch.randint(2**62, (self._team.ranks, self._share), generator=generator)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[self._team.rank].tolist()]
        batch = self._task.batch(next(self._items), generators)
        return {name: value.to(self._device) for name, value in batch.items()}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self._network.train()
        return self._task.loss(self._network, batch)

    def show(self, folder: Path, step: int) -> None:
        """Nothing: plots are drawn of the finished head."""


def _endless(loader: FeatureLoader) -> Iterator[Items]:
    while True:
        yield from loader


class _Looks:
    """At the validation rows, every so many steps; keeps the best weights, and knows when there is no hope left."""

    def __init__(
        self, problem: Problem, split: Split, folder: Path, device: str, team: Team, step: int
    ) -> None:
        self._problem, self._places, self._device, self._team = problem, split.validation, device, team
        self._log, self._folder = folder / VALIDATION, folder
        if team.writes:
            cut_log(self._log, step)
        team.wait()
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        self._values = {one["step"]: one["value"] for one in map(json.loads, lines)}

    def due(self, step: int) -> bool:
        task = self._problem.spec.task
        return len(self._places) > 0 and (step % task.validate_every == 0 or step == task.steps)

    def look(self, network: Head, step: int) -> None:
        """By every process, of the same weights, so that all know the same."""
        evaluation = evaluate(self._problem, self._places, network, self._device)
        value = next(iter(evaluation.metrics.values()))
        self._values[step] = value
        if not self._team.writes:
            return
        with self._log.open("a") as file:
            file.write(json.dumps({"step": step, "value": value}) + "\n")
        if self._best_step == step:
            data = weights_file(network, self._problem.digest)
            storage.put(LocalFileSystem(), str(self._file(step).absolute()), data)
            for other in set(self._folder.glob(BEST.format("*"))) - {self._file(step)}:
                other.unlink()

    @property
    def exhausted(self) -> bool:
        """Whether as many looks as the spec's patience have passed without a better one."""
        steps = list(self._values)
        patience = self._problem.spec.task.patience
        return bool(steps) and len(steps) - 1 - steps.index(self._best_step) >= patience

    @property
    def _best_step(self) -> int:
        """The first of the best."""
        return max(self._values, key=lambda step: (self._values[step], -step))

    def restore(self, network: Head, step: int) -> int:
        """Give the network the best weights, if there were looks; the step that its weights are of."""
        if not self._values:
            return step
        network.load_state_dict(load_file(self._file(self._best_step), device=self._device))
        return self._best_step

    def _file(self, step: int) -> Path:
        """Of weights; it says of which step, since a run that died may have looked once more than its log says."""
        return self._folder / BEST.format(step)
