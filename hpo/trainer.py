"""What a search needs of a training, and nothing else: no PyTorch, no Optuna and no database here.

A lab writes a module that makes a `Trainer`, and a space names it: `trainer: my_lab/train.py:trainer`.
The search starts its trainings, asks them for their progress, and keeps and restores their states.
`hpo.decoder.trainer:gru_ctc` is the one that is built in.
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

from hpo.errors import SpecError
from hpo.settings import Config, Flag, Settings, explain

DEFAULT_TRAINER = "hpo.decoder.trainer:gru_ctc"
# Of studies whose file has a `script:` section.
SCRIPT_TRAINER = "hpo.script.trainer:script"


class Metric(Settings):
    """What a training is judged by."""

    name: str = Field(description="as people write it: PER, accuracy")
    unit: str = Field(default="", description="percent: a fraction of 1 that is shown as percent")
    direction: Literal["minimize", "maximize"] = "minimize"
    bounded: Flag = Field(default=False, description="from 0 to 1")
    items: str = Field(default="items", description="what a score is over, in the plural")
    description: str = Field(default="", description="for a paper's methods section")

    @property
    def sign(self) -> int:
        """1 where lower is better, -1 where higher is: `sign * value` is to be made small."""
        return 1 if self.direction == "minimize" else -1

    @property
    def key(self) -> str:
        """The name as programs write it: per, frame_accuracy."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_") or "metric"

    @property
    def lowest(self) -> str:
        """The word for the best value."""
        return "lowest" if self.direction == "minimize" else "highest"

    @property
    def good(self) -> str:
        return "low" if self.direction == "minimize" else "high"

    def worst(self, values: Sequence[float]) -> float:
        """What a training that diverged counts with: of a bounded metric its bound, else the worst of these values."""
        if self.bounded or not values:
            return 1.0 if self.direction == "minimize" else 0.0
        return max(values, key=lambda value: self.sign * value)

    def better(self, value: float, than: float) -> bool:
        return self.sign * value < self.sign * than

    def best(self, values: Sequence[float]) -> float:
        """Of at least one value."""
        return min(values, key=lambda value: self.sign * value)

    def bare(self, value: float) -> str:
        """13.24, or 0.1324: where the unit is said elsewhere."""
        return f"{100 * value:.2f}" if self.unit == "percent" else f"{value:.4g}"

    def text(self, value: float) -> str:
        """13.24 %, or 0.1324 with the unit."""
        return f"{self.bare(value)} {self.sign_of_unit}".rstrip()

    def short(self, value: float) -> str:
        """13.2 %, or 0.132 with the unit: for a table."""
        shown = f"{100 * value:.1f}" if self.unit == "percent" else f"{value:.3g}"
        return f"{shown} {self.sign_of_unit}".rstrip()

    def between(self, interval: Sequence[float] | None) -> str:
        """12.1..14.3 %"""
        if interval is None:
            return "-"
        low, high = interval
        if self.unit == "percent":
            return f"{100 * low:.1f}..{100 * high:.1f} %"
        return f"{low:.3g}..{high:.3g} {self.unit}".rstrip()

    def difference(self, difference: float | None) -> str:
        """+1.23, in points where the unit is percent."""
        if difference is None:
            return "-"
        return f"{100 * difference:+.2f}" if self.unit == "percent" else f"{difference:+.3g}"

    @property
    def scale(self) -> float:
        """What a value is multiplied by where it is drawn or a difference is shown."""
        return 100.0 if self.unit == "percent" else 1.0

    @property
    def label(self) -> str:
        """Of an axis: PER (%)."""
        return f"{self.name} ({self.sign_of_unit})" if self.unit else self.name

    @property
    def sign_of_unit(self) -> str:
        return "%" if self.unit == "percent" else self.unit

    @property
    def difference_unit(self) -> str:
        """Differences of percentages are points."""
        return "points" if self.unit == "percent" else self.unit or f"units of {self.name}"


# Keys of dotted names and their values, where nothing is the metric's.
PARTS_OF_A_CONFIGURATION = ("config", "params", "base", "change")


def named(facts: Any, metric: Metric) -> Any:
    """JSON-ready facts with the metric's values under its own name too: beside `best_value` there is `best_per`.

    Programs that know the metric read them by its name; those that know any read `value`.
    """
    if isinstance(facts, Mapping):
        found = {
            key: item if key in PARTS_OF_A_CONFIGURATION else named(item, metric)
            for key, item in facts.items()
        }
        for key in facts:
            own = re.sub(r"(?<![a-z])value(?![a-z])", metric.key, key)
            found.setdefault(own, found[key])
        return found
    if isinstance(facts, (list, tuple)):
        return [named(item, metric) for item in facts]
    return facts


@dataclass(frozen=True)
class Score:
    """A metric's value as a ratio of sums over items, kept per item so that intervals can be computed.

    errors and lengths: one entry per item, in the same order for every training on the same data. Of
    a phoneme error rate they are a sentence's edit errors and its number of phonemes; of an accuracy
    1 or 0 for each item, and 1.
    """

    errors: tuple[float, ...]
    lengths: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("errors", "lengths"):
            object.__setattr__(self, name, tuple(_plain(number) for number in getattr(self, name)))
        if len(self.errors) != len(self.lengths) or not sum(self.lengths):
            raise ValueError(
                f"a score of {len(self.errors)} errors and {len(self.lengths)} lengths that sum up to {sum(self.lengths):g}. "
                f"Valid: one of each per item, and a sum of the lengths that is not 0"
            )

    @classmethod
    def of(cls, value: float) -> "Score":
        """Where nothing is known but one number. An interval over items cannot be had then."""
        return cls((value,), (1.0,))

    @property
    def value(self) -> float:
        return sum(self.errors) / sum(self.lengths)


def as_score(found: Any) -> Score:
    """A score as it is, or one number as a score."""
    return found if isinstance(found, Score) else Score.of(_plain(found))


def _plain(number: Any) -> float:
    """Python's own number. Raises TypeError or ValueError for what is none."""
    return number if type(number) in (int, float) else float(number)


@dataclass(frozen=True)
class Progress:
    """One look at a training, after at least one step since the look before."""

    step: int
    """Optimizer updates done."""
    loss: float | None
    """Of the training data, mean since the look before. Not finite: the training has diverged. None: not known."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Learning rate, gradient norm, ...: drawn, never interpreted. Kept where there is a score."""
    score: Score | None = None
    """Where the training was evaluated: every `evaluate_every` steps and at the last one. A training that ends before, or after
    steps without a score, is evaluated once more.
    """
    validation_loss: float | None = None
    """On the items of the score."""
    diverged: str = ""
    """Why the training cannot go on, for people. A loss that is not finite needs no word."""

    def __post_init__(self) -> None:
        """Numbers of NumPy and of PyTorch become Python's, which the database takes, and a single number a score."""
        object.__setattr__(self, "step", int(self.step))
        if self.loss is not None:
            object.__setattr__(self, "loss", _plain(self.loss))
        object.__setattr__(
            self, "metrics", {str(name): _plain(value) for name, value in self.metrics.items()}
        )
        if self.score is not None:
            object.__setattr__(self, "score", as_score(self.score))
        if self.validation_loss is not None:
            object.__setattr__(self, "validation_loss", _plain(self.validation_loss))

    @property
    def reason_to_end(self) -> str:
        """Why it has diverged; empty: it has not."""
        if self.diverged or self.loss is None or math.isfinite(self.loss):
            return self.diverged
        return f"training loss {self.loss:.3g}"


@dataclass(frozen=True)
class Waiting:
    """A look at a training that has nothing new to tell, but works: its lease is renewed.

    For trainings that are silent for longer than a lease; others need not yield it.
    """

    goes_on_at: int | None = None
    """Known now: the step of the next look. Points of the curve from there on are made again."""


class TrainingFailedError(Exception):
    """A training has ended by trouble of its own that has been put into words: no traceback is of use.

    lost: something from outside ended it, such as a signal, so that it may well succeed next time.
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
        """Advance to the last step, yielding on the way. Who asks may stop asking at any time.

        A training that was resumed may begin earlier than at `step`: the points of the curve from
        there on are replaced.
        """

    def evaluate(self, data: Any) -> Score:
        """Score what the training has learned so far. data: made by the trainer's `load_data`."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes, random generators included: tensors and plain Python values."""

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from such a state, with tensors on the CPU. Raises ValueError if it does not fit."""


@dataclass(frozen=True)
class DataRequest:
    """Which data a study trains on."""

    path: Path | None
    """None: what the trainer itself brings."""
    config: Config
    device: str
    """cpu, cuda:0, ..."""
    fraction: float = 0.1
    """Of the training data, cut off to validate on."""
    seed: int = 0
    """Of that cut."""
    partition: str = "train"
    """`train`: what trains, with the part that validates. Another one is only scored."""


@dataclass(frozen=True)
class Site:
    """Where an attempt at a trial runs, for trainings that keep files of their own."""

    folder: Path
    """Of the trial, in which every attempt may keep files."""
    log: Path
    """Of the trial."""
    study: str
    trial: int
    attempt: int
    device: str
    """cpu, cuda:0, or several as cuda:0,1"""
    gpus: str = ""
    """The same as CUDA_VISIBLE_DEVICES has them: their UUIDs; empty: none."""
    secrets: tuple[str, ...] = ()
    """What no process that the training starts may see: the database's URL and password."""


class Dataset(Protocol):
    """One partition of the data, made ready for trainings on one device."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal data, wherever they lie."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Plain values that the study keeps of the data; may be empty."""

    def describe(self, config: Config) -> list[str]:
        """Lines for people about these data and this configuration.

        Raises DataError if such a training cannot use these data.
        """


@dataclass(frozen=True)
class Weights:
    """How a trainer keeps what a training has learned: a file per trial, `best` and `last`."""

    suffix: str
    """Of the file's name: .pt"""
    collect: Callable[[Any], dict[str, Any]]
    """Of a training: tensors and plain values, taken between two steps."""
    write: Callable[[Path, dict[str, Any], Config, dict[str, Any]], None]
    """(path, collected, config, facts): write what was collected, with the configuration and facts of its origin.

    Raises OSError.
    """


@dataclass(frozen=True)
class Feature:
    """A number that a trainer computes from fields, because it tells more than they do alone."""

    fields: tuple[str, ...]
    compute: Callable[[Mapping[str, Any]], Any]
    """Field -> array of values, one per configuration; returns an array of numbers around 0."""


@dataclass(frozen=True)
class Arguments:
    """A configuration in the names of another code base, for `hpo export`. A trainer offers it as `arguments`."""

    about: tuple[str, ...]
    """Lines for people, above the values."""
    of: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    """(configuration, facts of the data) -> name: value."""


@dataclass(frozen=True)
class Ensembles:
    """How trained models of one trainer are combined, for `hpo ensemble`. A trainer offers it as `ensemble`."""

    matching: tuple[str, ...]
    """Fields in which all members must agree."""
    means: tuple[str, ...]
    """The ways to combine them."""
    outputs: Callable[[Any, Mapping[int, Path]], tuple[Any, dict[int, tuple[float, int]]]]
    """(Dataset, file of weights by number) -> what each says of the data; seconds and number of parameters of each."""
    select: Callable[[Any, str, int], list[int]]
    """(outputs, mean, size) -> members in the order in which they are best added, the best single one first."""
    scores_along: Callable[[Sequence[int], Any, str], list[Score]]
    """(members, outputs, mean) -> the score of the first, of the first two, and so on."""


@dataclass(frozen=True)
class PastRuns:
    """How run folders of a trainer's own kind are read, for `hpo import`. A trainer offers it as `past_runs`."""

    read: Callable[[Path], Any]
    """A file of plain values. Raises DataError."""
    translate: Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[str]]]
    """A run's arguments -> (dotted name: value, as far as they tell; what the configuration cannot say)."""
    lr_factor: Callable[[Any, int], float]
    """(configuration, steps done) -> planned learning rate / its largest."""


@dataclass(frozen=True)
class Trainer:
    """Functions that make trainings, and nothing to inherit."""

    config: type[Config]
    load_data: Callable[[DataRequest], Any]
    """Returns a Dataset. Raises DataError, MemoryError."""
    start: Callable[..., Any]
    """(configuration, Dataset) -> Training at step 0; with a Site as the third argument if `needs_site`."""
    metric: Metric
    weights: Weights | None = None
    """None: `state_dict()` in a file of torch.save."""
    feature: Feature | None = None
    """For the model that `gp` has of the space."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Fields whose interaction `hpo effects` looks at in any case."""
    free: tuple[str, ...] = ()
    """Fields that change no result, beside the seed and `evaluate_every`."""
    code: tuple[str, ...] = ()
    """Files, relative to the trainer's folder, that shape results. Empty: the file with the trainer."""
    bundled: str = "the trainer's own data"
    """What it trains on without a path, in words."""
    what: str = "a model"
    """What it trains, for a paper's methods section."""
    cut: str = "the training items"
    """What the validation part is a fraction of, for the same."""
    summary: Callable[[Any], str] = lambda config: f"{config.steps} steps"
    """What a configuration trains, in a few words."""
    sizes: Callable[[Any], Mapping[str, str]] = lambda config: {
        "steps": f"{config.steps} optimizer updates"
    }
    """What a methods section says of a configuration, by the field that says it."""
    offers: Mapping[str, Any] = field(default_factory=dict)
    """What else it can do, by the name of a feature of hpo that asks for it; see `offered`."""
    needs_site: bool = False
    """Whether `start` takes a Site."""
    keeps_files: bool = False
    """Whether its trainings keep their results in their own files: the worker writes no weights."""
    partition: str = "validation"
    """What its scores are of. `test`: the search selects on it, and every report says so."""
    cuts_validation: bool = True
    """Whether `load_data` cuts the validation part, and can load `test` too."""
    take: Literal["last", "best"] = "last"
    """Which value of a curve is the trial's. `best` flatters, and every report says so."""
    seeded: bool = True
    """Whether the configuration's seed reaches the training."""
    gpus: int = 1
    """That a training takes."""
    ending_seconds: float = 0.0
    """How long a training may take to end when it is asked to."""
    resume: str = "exact"
    """`exact`, `within X`, `none`, or `not known`: what going on with an interrupted training gives."""
    state_of_code: Callable[[], str] | None = None
    """The state of code that lies outside of `code`, equal for equal code. Raises SpecError."""


@dataclass(frozen=True)
class SectionOfFile:
    """The section of a study file that a trainer is made of, and what lies around it."""

    path: Path
    """Of the study file."""
    section: Mapping[str, Any]
    parameters: Mapping[str, Any]
    """Name -> Parameter, as in the file."""
    base: Mapping[str, Any]
    """Dotted name -> value, as in the file."""
    starts: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class TrainerMaker:
    """Makes the trainer of a study out of a section of its file."""

    resolve: Callable[[SectionOfFile], dict[str, Any]]
    """The section made complete: JSON-ready values that a worker on another host can use. Raises SpecError."""
    make: Callable[[Mapping[str, Any]], Trainer]
    """Of a complete section."""


def load_maker(reference: str) -> TrainerMaker:
    """reference: `module:name` of one of ours."""
    place, _, name = reference.rpartition(":")
    maker: TrainerMaker = getattr(importlib.import_module(place), name)
    return maker


@cache
def make_trainer(reference: str, section: str) -> Trainer:
    """The trainer of a complete section, given as JSON."""
    return load_maker(reference).make(json.loads(section))


def offered(trainer: Trainer, reference: str, name: str, what: str) -> Any:
    """What a trainer offers beyond training.

    name: `export`, `ensemble`, `evaluate` or `past_runs`. reference, what: for the message.
    Raises SpecError, one line, if this trainer does not.
    """
    if name in trainer.offers:
        return trainer.offers[name]
    if reference == SCRIPT_TRAINER:
        raise SpecError(f"a script trains this study, and {what} needs the built-in decoder")
    raise SpecError(f"trainer {reference}: it offers no {what}")


@cache
def load_trainer(reference: str) -> Trainer:
    """The trainer that a reference names: `path/to/train.py:name`, or `package.module:name`.

    Raises SpecError if it cannot be loaded, with its own error in one line.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise SpecError(
            f"trainer {reference!r}: valid is FILE.py:NAME or PACKAGE.MODULE:NAME, such as {DEFAULT_TRAINER}"
        )
    try:
        module = (
            _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        )
    except FileNotFoundError:
        raise SpecError(f"trainer {reference}: there is no file {place}") from None
    except Exception as error:
        raise SpecError(
            f"trainer {reference}: {place} cannot be loaded ({_one_line(error)})"
        ) from None
    found = getattr(module, name, None)
    if not isinstance(found, Trainer):
        names = sorted(other for other, value in vars(module).items() if isinstance(value, Trainer))
        kind = "nothing" if found is None else f"a {type(found).__name__}"
        raise SpecError(
            f"trainer {reference}: {name} is {kind} there, not an hpo.Trainer. Valid: {', '.join(names) or 'none is there'}"
        )
    _check_config(reference, found.config)
    return found


def _check_config(reference: str, config: Any) -> None:
    """Raises SpecError for a configuration that a search could not overlay and store."""
    if not (isinstance(config, type) and issubclass(config, Config)):
        raise SpecError(
            f"trainer {reference}: config is {config!r}. Valid: a subclass of hpo.Config"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pydantic, about what is told below
            json.dumps(config().with_values({}).flat(), allow_nan=False)
    except (ValidationError, SpecError) as error:
        fault = explain(error) if isinstance(error, ValidationError) else error
        raise SpecError(
            f"trainer {reference}: {config.__name__} cannot be made of its defaults ({fault}). Give each field a valid one"
        ) from None
    except (
        TypeError,
        ValueError,
    ) as error:  # of pydantic or json, for a value that JSON cannot hold
        raise SpecError(
            f"trainer {reference}: {config.__name__} has a value that cannot be stored ({error}). Valid: numbers, flags, text, "
            f"None, and lists and groups of them"
        ) from None


def trainer_files(trainer: Trainer, reference: str) -> list[Path]:
    """The files whose code shapes the results of trainings: those that the trainer names, else its own."""
    place = reference.rpartition(":")[0]
    own = (
        Path(place) if place.endswith(".py") else Path(str(importlib.import_module(place).__file__))
    )
    return [own.parent / name for name in trainer.code] or [own]


def _load_file(path: Path) -> Any:
    """A file as a module of its own; its folder comes first on the path, so that it can import its neighbours."""
    path = path.absolute()
    if not path.is_file():
        raise FileNotFoundError(path)
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"hpo_trainer_{path.stem}_{digest}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _one_line(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        return f"{error.title}: {explain(error)}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
