"""The interface between a search and the trainings that it runs.

A lab writes a module that makes a `Trainer`, and a study file names it:
`trainer: my_lab/train.py:trainer`. The search starts trainings through it, reads their progress,
and saves and restores their states. `hpo.decoder.trainer:gru_ctc` is the built-in trainer.

Nothing here depends on PyTorch, Optuna or a database.
"""

import hashlib
import importlib
import importlib.util
import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, ValidationError

from hpo.errors import SpecError, shown
from hpo.settings import Config, Flag, Settings, explain

DEFAULT_TRAINER = "hpo.decoder.trainer:gru_ctc"
# The trainer of studies whose file has a `script:` section.
SCRIPT_TRAINER = "hpo.script.trainer:script"


class Metric(Settings):
    """The number that a training is judged by."""

    name: str = Field(description="as people write it: PER, accuracy")
    unit: str = Field(default="", description="percent: a fraction of 1 that is shown as percent")
    direction: Literal["minimize", "maximize"] = "minimize"
    bounded: Flag = Field(default=False, description="from 0 to 1")
    items: str = Field(default="items", description="what a score is over, in the plural")
    description: str = Field(default="", description="for a paper's methods section")

    @property
    def sign(self) -> int:
        """1 where lower is better, -1 where higher is: a lower `sign * value` is always better."""
        return 1 if self.direction == "minimize" else -1

    @property
    def key(self) -> str:
        """The name as programs write it: per, frame_accuracy."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_") or "metric"

    @property
    def lowest(self) -> str:
        """The word for the best value: lowest or highest."""
        return "lowest" if self.direction == "minimize" else "highest"

    @property
    def good(self) -> str:
        """The word for a good value: low or high."""
        return "low" if self.direction == "minimize" else "high"

    def worst(self, values: Sequence[float]) -> float:
        """The value that a diverged training counts with.

        It is the bad bound of a bounded metric, otherwise the worst of these values.
        """
        if self.bounded or not values:
            return 1.0 if self.direction == "minimize" else 0.0
        return max(values, key=lambda value: self.sign * value)

    def better(self, value: float, than: float) -> bool:
        return self.sign * value < self.sign * than

    def best(self, values: Sequence[float]) -> float:
        """The best of at least one value."""
        return min(values, key=lambda value: self.sign * value)

    def bare(self, value: float) -> str:
        """A value without its unit: 13.24, or 0.1324."""
        return f"{100 * value:.2f}" if self.unit == "percent" else f"{value:.4g}"

    def text(self, value: float) -> str:
        """A value with its unit: 13.24 %, or 0.1324."""
        return f"{self.bare(value)} {self.sign_of_unit}".rstrip()

    def short(self, value: float) -> str:
        """A value with its unit, for a table: 13.2 %, or 0.132."""
        shown = f"{100 * value:.1f}" if self.unit == "percent" else f"{value:.3g}"
        return f"{shown} {self.sign_of_unit}".rstrip()

    def between(self, interval: Sequence[float] | None) -> str:
        """An interval with its unit: 12.1..14.3 %"""
        if interval is None:
            return "-"
        low, high = interval
        if self.unit == "percent":
            return f"{100 * low:.1f}..{100 * high:.1f} %"
        return f"{low:.3g}..{high:.3g} {self.unit}".rstrip()

    def difference(self, difference: float | None) -> str:
        """A difference without its unit: +1.23, in points where the unit is percent."""
        if difference is None:
            return "-"
        return f"{100 * difference:+.2f}" if self.unit == "percent" else f"{difference:+.3g}"

    @property
    def scale(self) -> float:
        """The factor by which values are multiplied in plots, and differences in text."""
        return 100.0 if self.unit == "percent" else 1.0

    @property
    def label(self) -> str:
        """The label of an axis: PER (%)."""
        return f"{self.name} ({self.sign_of_unit})" if self.unit else self.name

    @property
    def sign_of_unit(self) -> str:
        """The unit as it stands behind a value: %."""
        return "%" if self.unit == "percent" else self.unit

    @property
    def difference_unit(self) -> str:
        """The unit of a difference. Differences of percentages are points."""
        if self.unit == "percent":
            return "points"
        return self.unit or f"units of {self.name}"


# Keys that hold dotted names and their values, among which no value is the metric's.
PARTS_OF_A_CONFIGURATION = ("config", "params", "base", "change")


def named(facts: Any, metric: Metric) -> Any:
    """JSON-ready facts that also hold the metric's values under its own name.

    Next to `best_value` they hold `best_per`, say: programs written for one metric read its name,
    programs for any metric read `value`.
    """
    if isinstance(facts, (list, tuple)):
        return [named(item, metric) for item in facts]
    if not isinstance(facts, Mapping):
        return facts
    result: dict[str, Any] = {}
    for key, item in facts.items():
        result[key] = item if key in PARTS_OF_A_CONFIGURATION else named(item, metric)
    for key in facts:
        own_name = re.sub(r"(?<![a-z])value(?![a-z])", metric.key, key)
        result.setdefault(own_name, result[key])
    return result


@dataclass(frozen=True)
class Score:
    """A metric's value as a ratio of sums over items.

    It is kept per item, so that intervals can be computed. `errors` and `lengths` have one entry
    per item, in the same order for every training on the same data: for a phoneme error rate the
    edit errors of a sentence and its number of phonemes, for an accuracy 1 or 0, and 1.

    Raises ValueError if their numbers differ or the lengths sum to 0.
    """

    errors: tuple[float, ...]
    lengths: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("errors", "lengths"):
            numbers = tuple(_plain(number) for number in getattr(self, name))
            object.__setattr__(self, name, numbers)
        if len(self.errors) != len(self.lengths) or not sum(self.lengths):
            raise ValueError(
                f"a score of {len(self.errors)} errors and {len(self.lengths)} lengths "
                f"that sum up to {sum(self.lengths):g}. "
                f"Valid: one of each per item, and a sum of the lengths that is not 0"
            )

    @classmethod
    def of(cls, value: float) -> "Score":
        """The score of a metric that is known as one number. It has no interval over items."""
        return cls((value,), (1.0,))

    @property
    def value(self) -> float:
        return sum(self.errors) / sum(self.lengths)


def as_score(score: Any) -> Score:
    """A score as it is, or one number as a score. Raises TypeError or ValueError for others."""
    if isinstance(score, Score):
        return score
    return Score.of(_plain(score))


def _plain(number: Any) -> float:
    """The number as an int or float of Python. Raises TypeError or ValueError if it is none."""
    return number if type(number) in (int, float) else float(number)


@dataclass(frozen=True)
class Progress:
    """One look at a training, after at least one step since the previous look.

    Numbers of NumPy and PyTorch become Python's, and a single number as `score` becomes a `Score`.
    """

    step: int
    """Optimizer updates done."""
    loss: float | None
    """Mean training loss since the previous look; None if unknown. If it is not finite, the
    training has diverged.
    """
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Learning rate, gradient norm and the like. They are plotted and never interpreted, and kept
    only at looks that have a score.
    """
    score: Score | None = None
    """The score, if the training was evaluated: every `evaluate_every` steps and at the last step.
    A training that ends without a score at its last step is evaluated once more.
    """
    validation_loss: float | None = None
    """On the items of the score."""
    diverged: str = ""
    """Why the training cannot continue, for people. Not needed for a loss that is not finite."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", int(self.step))
        if self.loss is not None:
            object.__setattr__(self, "loss", _plain(self.loss))
        metrics = {str(name): _plain(value) for name, value in self.metrics.items()}
        object.__setattr__(self, "metrics", metrics)
        if self.score is not None:
            object.__setattr__(self, "score", as_score(self.score))
        if self.validation_loss is not None:
            object.__setattr__(self, "validation_loss", _plain(self.validation_loss))

    @property
    def reason_to_end(self) -> str:
        """Why the training has diverged; empty if it has not."""
        if self.diverged or self.loss is None or math.isfinite(self.loss):
            return self.diverged
        return f"training loss {self.loss:.3g}"


@dataclass(frozen=True)
class Waiting:
    """A look at a training that works but has nothing new to report. It renews the lease.

    Only trainings that may be silent for longer than a lease need to yield it.
    """

    resumes_at: int | None = None
    """The step of the next look, if it is known. Points of the curve from there on are replaced."""


class TrainingFailedError(Exception):
    """A training failed for a reason that it can name, so that a traceback would not help.

    words: the reason, for people. lost: something outside ended it, such as a signal, so that
    another attempt may succeed.
    """

    def __init__(self, words: str, lost: bool = False):
        super().__init__(words)
        self.lost = lost


class TrainingHangsError(TrainingFailedError):
    """A training showed no sign of life for longer than it may."""


class Training(Protocol):
    """One training, from its first step or from a saved state to its last step."""

    @property
    def step(self) -> int:
        """Optimizer updates done."""

    def train(self) -> Iterator[Progress | Waiting]:
        """Advance to the last step and yield looks on the way. The caller may stop at any time.

        A resumed training may begin before `step`: the points of the curve from there on are
        replaced.
        """

    def evaluate(self, data: Any) -> Score:
        """Score the current weights on data that the trainer's `load_data` returned."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes during training: tensors and plain Python values.

        The states of random generators belong to it, or a resumed training draws other numbers.
        """

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`, whose tensors are on the CPU.

        Raises ValueError if it does not fit.
        """


@dataclass(frozen=True)
class DataRequest:
    """Which data to load, and for which device."""

    path: Path | None
    """None: the trainer's own data."""
    config: Config
    device: str
    """cpu, cuda:0, ..."""
    fraction: float = 0.1
    """The fraction of the training data that is held out for validation."""
    seed: int = 0
    """The seed with which it is drawn."""
    partition: str = "train"
    """`train`: the data to train on, with the validation part. Other partitions are only scored."""


@dataclass(frozen=True)
class Site:
    """Where an attempt at a trial runs, for trainings that write files of their own."""

    folder: Path
    """The trial's folder, shared by all its attempts."""
    log: Path
    """The trial's log."""
    study: str
    trial: int
    attempt: int
    device: str
    """cpu, cuda:0, or several as cuda:0,1"""
    gpus: str = ""
    """The same devices as UUIDs, for CUDA_VISIBLE_DEVICES; empty if there are none."""
    secrets: tuple[str, ...] = ()
    """The database's URL and password, which no process of the training may see."""


class Dataset(Protocol):
    """One partition of the data, ready for trainings on one device."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal data, wherever they are stored."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """JSON-ready values about the data that the study stores; may be empty."""

    def describe(self, config: Config) -> list[str]:
        """Lines for people about these data and this configuration.

        Raises DataError if such a training cannot use these data.
        """


@dataclass(frozen=True)
class Weights:
    """How the weights of a training are saved: two files per trial, `best` and `last`."""

    suffix: str
    """The suffix of the files: .pt"""
    collect: Callable[[Any], dict[str, Any]]
    """(training) -> tensors and plain values. Called between two steps."""
    write: Callable[[Path, dict[str, Any], Config, dict[str, Any]], None]
    """(path, collected, config, facts): writes what was collected, with the configuration and
    facts about its origin. Raises OSError.
    """


@dataclass(frozen=True)
class Feature:
    """A number computed from several fields, because it tells a model more than they do alone."""

    fields: tuple[str, ...]
    compute: Callable[[Mapping[str, Any]], Any]
    """(field -> array of values, one per configuration) -> array of numbers around 0."""


@dataclass(frozen=True)
class Arguments:
    """A configuration in the names of another code base, for `hpo export`.

    A trainer offers it as `arguments`.
    """

    about: tuple[str, ...]
    """Lines for people, above the values."""
    of: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    """(configuration, facts of the data) -> name: value."""


@dataclass(frozen=True)
class Ensembles:
    """How trained models of one trainer are combined, for `hpo ensemble`.

    A trainer offers it as `ensemble`.
    """

    matching: tuple[str, ...]
    """Fields in which all members must agree."""
    means: tuple[str, ...]
    """The ways to combine them."""
    outputs: Callable[[Any, Mapping[int, Path]], tuple[Any, dict[int, tuple[float, int]]]]
    """(Dataset, number -> file of weights) -> the outputs of all models on the data, and
    number -> (seconds, number of parameters).
    """
    select: Callable[[Any, str, int], list[int]]
    """(outputs, mean, size) -> members, the best single one first, then each that helps most."""
    scores_along: Callable[[Sequence[int], Any, str], list[Score]]
    """(members, outputs, mean) -> the score of the first, of the first two, and so on."""


@dataclass(frozen=True)
class Inexpressible:
    """An argument of a run that a configuration cannot express."""

    field: str
    """The dotted field that it would set; empty if there is none."""
    why: str


@dataclass(frozen=True)
class Translated:
    """What the arguments of a run say in the names of a trainer."""

    config: dict[str, Any]
    """Dotted name -> value for every field that they set."""
    inexpressible: tuple[Inexpressible, ...] = ()
    unknown: tuple[str, ...] = ()
    """Arguments whose effect on a training is not known."""


@dataclass(frozen=True)
class PastRuns:
    """How run folders of a trainer's own kind are read, for `hpo import`.

    A trainer offers it as `past_runs`.
    """

    read: Callable[[Path], Any]
    """(path) -> the contents of a file of plain values. Raises DataError."""
    translate: Callable[[Mapping[str, Any]], Translated]
    """(arguments of a run) -> what they say in the names of the trainer."""
    lr_factor: Callable[[Any, int], float]
    """(configuration, steps done) -> planned learning rate / its largest value."""
    weight_faults: Callable[[Path, list[str]], list[str]]
    """(folder of a run, warnings that get what is doubtful otherwise) -> a line for each reason why
    its weights are those of another model; empty if there are no weights.
    """


def _steps_in_words(config: Any) -> str:
    return f"{config.steps} steps"


def _sizes_in_words(config: Any) -> Mapping[str, str]:
    return {"steps": f"{config.steps} optimizer updates"}


@dataclass(frozen=True)
class Trainer:
    """Functions that make trainings. A trainer has nothing to inherit from."""

    config: type[Config]
    """The type of its configurations."""
    load_data: Callable[[DataRequest], Any]
    """(request) -> Dataset. Raises DataError, MemoryError."""
    start: Callable[..., Any]
    """(configuration, Dataset) -> Training at step 0; with a Site as the third argument if
    `needs_site`.
    """
    metric: Metric
    weights: Weights | None = None
    """None: `state_dict()` is saved with torch.save."""
    feature: Feature | None = None
    """For the model of the space that `gp` fits."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of fields whose interaction `hpo effects` always looks at."""
    free: tuple[str, ...] = ()
    """Fields that change no result, in addition to the seed and `evaluate_every`."""
    code: tuple[str, ...] = ()
    """Files, relative to the trainer's folder, whose code shapes results. Empty: the trainer's own
    file.
    """
    bundled: str = "the trainer's own data"
    """The data that it trains on when no path is given, in words."""
    what: str = "a model"
    """What it trains, for a paper's methods section."""
    cut: str = "the training items"
    """What the validation part is a fraction of, for a paper's methods section."""
    summary: Callable[[Any], str] = _steps_in_words
    """(configuration) -> what it trains, in a few words."""
    sizes: Callable[[Any], Mapping[str, str]] = _sizes_in_words
    """(configuration) -> field: what a methods section says about it."""
    offers: Mapping[str, Any] = field(default_factory=dict)
    """What else it can do, under the names that hpo's commands ask for; see `offered`."""
    needs_site: bool = False
    """Whether `start` takes a Site."""
    keeps_files: bool = False
    """Whether its trainings save their results themselves, so that the worker saves no weights."""
    partition: str = "validation"
    """The partition that scores are computed on. With `test` the search selects on the test
    partition, and every report says so.
    """
    cuts_validation: bool = True
    """Whether `load_data` holds out the validation part, and can load `test` too."""
    take: Literal["last", "best"] = "last"
    """Which value of a curve is the trial's. `best` flatters, and every report says so."""
    seeded: bool = True
    """Whether the configuration's seed reaches the training."""
    gpus: int = 1
    """GPUs per training."""
    ending_seconds: float = 0.0
    """How long a training may take to end once it is asked to."""
    resume: str = "exact"
    """How well a resumed training repeats an uninterrupted one: `exact`, `within X`, `none`, or
    `not known`.
    """
    state_of_code: Callable[[], str] | None = None
    """() -> the state of code outside of `code`, equal for equal code. Raises SpecError."""


@dataclass(frozen=True)
class SectionOfFile:
    """The section of a study file that a trainer is made from, and its surroundings."""

    path: Path
    """The study file."""
    section: Mapping[str, Any]
    parameters: Mapping[str, Any]
    """Name -> Parameter, as in the file."""
    base: Mapping[str, Any]
    """Dotted name -> value, as in the file."""
    starts: Mapping[str, Mapping[str, Any]]
    """Name -> dotted name -> value, as in the file."""


@dataclass(frozen=True)
class TrainerMaker:
    """Makes the trainer of a study from a section of its file."""

    resolve: Callable[[SectionOfFile], dict[str, Any]]
    """(section) -> the complete section: JSON-ready values that a worker on another host can use.
    Raises SpecError.
    """
    make: Callable[[Mapping[str, Any]], Trainer]
    """(complete section) -> Trainer."""


def load_maker(reference: str) -> TrainerMaker:
    """The maker that a reference of our own names, as `module:name`."""
    module, _, name = reference.rpartition(":")
    maker: TrainerMaker = getattr(importlib.import_module(module), name)
    return maker


@cache
def make_trainer(reference: str, section: str) -> Trainer:
    """The trainer of a complete section. reference: of its maker. section: as JSON."""
    return load_maker(reference).make(json.loads(section))


def offered(trainer: Trainer, reference: str, name: str, what: str) -> Any:
    """Something that a trainer offers beyond training.

    name: its key in `Trainer.offers`. reference, what: for the message.
    Raises SpecError, one line, if this trainer does not offer it.
    """
    if name in trainer.offers:
        return trainer.offers[name]
    if reference == SCRIPT_TRAINER:
        raise SpecError(f"a script trains this study, and {what} needs the built-in decoder")
    raise SpecError(f"trainer {reference}: it offers no {what}")


@cache
def load_trainer(reference: str) -> Trainer:
    """The trainer that a reference names: `path/to/train.py:name`, or `package.module:name`.

    Raises SpecError if it cannot be loaded, with the error of its own code in one line.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise SpecError(
            f"trainer {shown(reference)}: not a reference. "
            f"Valid: FILE.py:NAME or PACKAGE.MODULE:NAME, such as {DEFAULT_TRAINER}"
        )
    module = _module(reference, place)
    trainer = getattr(module, name, None)
    if not isinstance(trainer, Trainer):
        names = sorted(other for other, value in vars(module).items() if isinstance(value, Trainer))
        valid = ", ".join(names) or "(it holds no hpo.Trainer)"
        if trainer is None:
            raise SpecError(f"trainer {reference}: {place} has no {name}. Valid: {valid}")
        raise SpecError(
            f"trainer {reference}: {name} is a {type(trainer).__name__}, not an hpo.Trainer. "
            f"Valid: {valid}"
        )
    _check_config(reference, trainer.config)
    return trainer


def _module(reference: str, place: str) -> Any:
    """The module of a trainer. place: a Python file, or a module's name. Raises SpecError."""
    try:
        if place.endswith(".py"):
            return _load_file(Path(place))
        return importlib.import_module(place)
    except FileNotFoundError:
        raise SpecError(f"trainer {reference}: there is no file {place}") from None
    except Exception as error:
        raise SpecError(
            f"trainer {reference}: {place} cannot be loaded ({_one_line(error)})"
        ) from None


def _check_config(reference: str, config: Any) -> None:
    """Raises SpecError for a configuration that a search could not overlay and store."""
    if not (isinstance(config, type) and issubclass(config, Config)):
        raise SpecError(
            f"trainer {reference}: config is {config!r}. Valid: a subclass of hpo.Config"
        )
    try:
        with warnings.catch_warnings():
            # pydantic warns about values that are reported below.
            warnings.simplefilter("ignore")
            json.dumps(config().with_values({}).flat(), allow_nan=False)
    except (ValidationError, SpecError) as error:
        fault = explain(error) if isinstance(error, ValidationError) else error
        raise SpecError(
            f"trainer {reference}: {config.__name__} cannot be made from its defaults ({fault}). "
            f"Give each field a valid default"
        ) from None
    # pydantic and json raise these for a value that JSON cannot hold.
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"trainer {reference}: {config.__name__} has a value that cannot be stored ({error}). "
            f"Valid: numbers, flags, text, None, and lists and groups of them"
        ) from None


def trainer_files(trainer: Trainer, reference: str) -> list[Path]:
    """The files whose code shapes the results of trainings.

    They are the files that the trainer names, otherwise its own.
    """
    place = reference.rpartition(":")[0]
    if place.endswith(".py"):
        own_file = Path(place)
    else:
        own_file = Path(str(importlib.import_module(place).__file__))
    if not trainer.code:
        return [own_file]
    return [own_file.parent / name for name in trainer.code]


def _load_file(path: Path) -> Any:
    """A file as a module of its own. Its folder comes first on sys.path, for its own imports."""
    path = path.absolute()
    if not path.is_file():
        raise FileNotFoundError(path)
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"hpo_trainer_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _one_line(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        return f"{error.title}: {explain(error)}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
