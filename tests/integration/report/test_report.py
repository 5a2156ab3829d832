"""The report of a study as text, JSON, one HTML page and Markdown."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import invoke
from helpers.hostile import ATTACKS, ATTRIBUTES, TAGS, Page
from helpers.lines import refusal
from helpers.paths import GOLDEN
from helpers.servers import execute, url_of
from helpers.studies import RECORD, TINY, point
from markdown_it import MarkdownIt

from hpo.analysis.stats import score_interval
from hpo.decoder.trainer import PER
from hpo.process import Process
from hpo.report import report_pictures as pictures
from hpo.report.finding_sections import MAPS
from hpo.report.page import as_html, as_markdown
from hpo.report.report import build_report
from hpo.report.report_data import ReportData, read_report_data
from hpo.report.report_page import page_of
from hpo.report.trial_sections import ROWS
from hpo.space.load import load_spec
from hpo.space.spec import StudySpec
from hpo.space.stopping import Stop
from hpo.store.database import Database
from hpo.store.embedded import EmbeddedServer
from hpo.study.study import Study
from hpo.study.trial import Cause, Completed, Failed, Stopped
from hpo.trainer import Score, named

TEXT = GOLDEN / "report.txt"
LENGTHS = (20,) * 30
# Of the trials; None: stopped.
PERS = (0.4, 0.45, 0.35, None, 0.3, 0.33, 0.6, None, 0.28, 0.2, 0.31, None)
# So many startup trials that all draws are random: they depend on seed and number.
SPACE = TINY.replace("trials: 4", "trials: 12").replace("startup_trials: 3", "startup_trials: 99")
Make = Callable[..., Study]


def run_study(study: Study, reason: str = "PER 0.9 at step 4") -> None:
    """Trials of two machines with made-up PERs.

    Where a rule stops a trial half way, each limit of the rule has its turn.
    """
    numbers = np.random.default_rng(7)
    limits = iter(("per", "loss", "non-finite"))
    for number, per in enumerate(PERS):
        record = {
            "device": f"cuda:{number % 2} (H200)",
            "code_version": "0.1.0 0123abcd",
            "data": "f",
        }
        trial = study.claim(Process(f"node{number % 2}", "1:1"), record)
        assert trial is not None
        points = [point(step, round((per or 0.4) + 0.6 / step, 2)) for step in (2, 4, 6)]
        if per is None:
            study.deliver(trial, points[:2], 4, 4.0)
            study.finish(trial, Stopped(Stop("own-past", next(limits), reason)), 4.0)
        else:
            study.deliver(trial, points, 6, 6.0)
            errors = numbers.binomial(LENGTHS, per)
            study.finish(trial, Completed(Score(tuple(map(int, errors)), LENGTHS)), 6.0)


def confirmed(
    name: str, trial: int, start: str | None, search_value: float, value: float
) -> dict[str, Any]:
    """A configuration that was retrained with three seeds."""
    seeds = [
        {
            "trial": number,
            "seed": 1000003 + number,
            "state": "complete",
            "reason": "",
            "value": value + 0.01 * number,
            "validation_value": value,
        }
        for number in (-1, 0, 1)
    ]
    return {
        "name": name,
        "trial": trial,
        "start": start,
        "search_value": search_value,
        "seeds": seeds,
        "value": value,
        "interval": [value - 0.02, value + 0.02],
        "optimism": value - search_value,
    }


CONFIRM: dict[str, Any] = {
    "child": "s.confirm",
    "partition": "test",
    "sentences": 240,
    "level": 0.95,
    "gpu_seconds": 300.0,
    "configs": [
        confirmed("trial 9", 9, None, 0.2067, 0.26),
        confirmed("baseline", 0, "baseline", 0.415, 0.4),
    ],
    "comparisons": [
        {
            "a": "trial 9",
            "b": "baseline",
            "difference": -0.14,
            "interval": [-0.17, -0.11],
            "p": 0.0002,
            "p_holm": 0.0004,
            "decided": True,
        }
    ],
    "separated": True,
    "notes": ["A note of confirm."],
}
TRIALS = [
    {"number": 2, "x": 0.01, "y": "adam", "value": 0.4, "state": "complete"},
    {"number": 3, "x": 0.001, "y": "adam", "value": 0.5, "state": "complete"},
    {"number": 4, "x": 0.0001, "y": "adam", "value": None, "state": "stopped"},
]
MAP: dict[str, Any] = {
    "x": "optimizer.lr",
    "y": "optimizer.name",
    "strength": 0.12,
    "x_values": [0.0001, 0.001, 0.01],
    "y_values": ["adam", "sgd"],
    "x_log": True,
    "y_log": False,
    "p": 0.004,
    "p_holm": 0.02,
    "value": [[0.5, 0.3, 0.2], [0.6, None, 0.4]],
    "trials": TRIALS,
}
EFFECTS: dict[str, Any] = {
    "trials": 12,
    "diverged": 3,
    "outcome": "PER at the end; a diverged trial counts as the worst.",
    "importance": [
        {
            "name": "optimizer.lr",
            "ped_anova": 0.6,
            "fanova": 0.5,
            "trials": 120,
            "p": 0.0001,
            "p_holm": 0.0002,
        },
        {
            "name": "optimizer.eps",
            "ped_anova": 0.2,
            "fanova": None,
            "trials": 7,
            "p": None,
            "p_holm": None,
        },
    ],
    "interactions": [
        MAP,
        {
            **MAP,
            "y": "optimizer.eps",
            "y_values": [1e-8, 0.1],
            "y_log": True,
            "trials": [{**trial, "y": 1e-4} for trial in TRIALS],
        },
    ],
    "notes": ["Few trials."],
}


def step(label: str, per: float | None, difference: float | None) -> dict[str, Any]:
    """A step of an ablation; without a PER both of its seeds diverged."""

    def around(value: float | None) -> list[float] | None:
        return None if value is None else [value - 0.02, value + 0.02]

    return {
        "changed": [label.split()[0]] if difference else [],
        "label": label,
        "value": per,
        "interval": around(per),
        "difference": difference,
        "difference_interval": around(difference),
        "p": 0.01 if difference else None,
        "diverged": 2 if per is None else 0,
        "trials": [4, 5],
        "decided": None if difference is None else difference < 0,
    }


ABLATION: dict[str, Any] = {
    "child": "s.ablate",
    "from": "slow",
    "to": "trial 9",
    "partition": "validation",
    "sentences": 30,
    "seeds": 2,
    "gpu_seconds": 0,
    "steps": [
        step("slow", 0.4, None),
        step("optimizer.name sgd -> adam", 0.3, -0.1),
        step("optimizer.lr 0.001 -> 0.04", None, None),
        step("optimizer.eps 1e-08 -> 0.1", 0.32, 0.02),
    ],
    "notes": [],
}
EVIDENCE = {
    "from": "baseline",
    "change": {"optimizer.eps": 1e-8},
    "per_from": 0.4,
    "per_changed": None,
    "difference": None,
    "difference_interval": None,
    "p": None,
    "diverged_from": 0,
    "diverged_changed": 2,
    "seeds": 2,
    "in_words": "With eps 1e-08 2 of 2 seeds diverged.",
}
QUESTIONS: dict[str, Any] = {
    "child": "s.ablate",
    "partition": "validation",
    "seeds": 2,
    "answers": [
        {
            "ask": "Why did it explode?",
            "evidence": [EVIDENCE],
            "verdict": "decided",
            "answer": "Its eps was too small.",
        },
        {
            "ask": "Does noise help?",
            "evidence": [],
            "verdict": "not decided",
            "answer": "The interval includes 0.",
        },
    ],
}


def curve_of_ensembles(sizes: int) -> list[dict[str, Any]]:
    curve = []
    for mean in ("arithmetic", "geometric"):
        for size in range(1, sizes + 1):
            values = {
                "validation_value": 0.25 - size / 100,
                "test_value": 0.27 - size / 100,
            }
            curve.append({"size": size, "added": 9, "mean": mean, **values})
    return curve


ENSEMBLE: dict[str, Any] = {
    "partition_selected": "validation",
    "partition": "test",
    "candidates": 8,
    "stride": 3,
    "single": {
        "trial": 9,
        "validation_value": 0.24,
        "validation_interval": [0.2, 0.28],
        "test_value": 0.26,
        "test_interval": [0.24, 0.28],
    },
    "ensemble": {
        "mean": "geometric",
        "members": [{"trial": 9, "weight": 2}, {"trial": 5, "weight": 1}],
        "validation_value": 0.22,
        "validation_interval": [0.18, 0.26],
        "test_value": 0.235,
        "test_interval": [0.21, 0.26],
    },
    "comparison": {"difference": -0.025, "interval": [-0.035, -0.015], "p": 0.0002},
    "curve": curve_of_ensembles(2),
    "cost": {
        "seconds_single": 1.5,
        "seconds_ensemble": 3.1,
        "ratio": 2.07,
        "sentences": 240,
        "parameters": 1000,
    },
    "notes": [],
}
PAST_RUNS: dict[str, Any] = {
    "runs": [
        {
            "name": "run16_3",
            "path": "/x/run16_3",
            "trial": None,
            "why_not": "no final evaluation",
            "best_value": 0.19,
            "last_value": 0.2,
            "evaluations": 64,
            "doubts": ["restarted in place"],
            "split": "test",
        }
    ]
}
FINDINGS = {
    "confirm": CONFIRM,
    "effects": EFFECTS,
    "ablation": ABLATION,
    "questions": QUESTIONS,
    "ensemble": ENSEMBLE,
    "past_runs": PAST_RUNS,
}


@pytest.fixture(scope="module")
def study(
    server: EmbeddedServer, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Study]:
    """With all findings, and the one that commands open."""
    execute(server, f"CREATE DATABASE test_report OWNER hpo TEMPLATE {template}")
    database = Database(url_of(server, "test_report"), None)
    space = tmp_path_factory.mktemp("space") / "tiny.yaml"
    space.write_text(SPACE)
    data = {"path": "/secret/place/ptDecoder_ctc", "fingerprint": "f", "n_features": 3, "n_days": 2}
    study = Study.create_or_open(database, "s", load_spec(space), data)
    run_study(study)
    for kind, content in FINDINGS.items():
        study.keep_result(kind, content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPO_DATABASE_URL", database.url)
        yield study
    execute(server, "DROP DATABASE test_report WITH (FORCE)")


@pytest.fixture(scope="module")
def facts(study: Study) -> ReportData:
    return read_report_data(study)


def with_findings(facts: ReportData, **findings: dict[str, Any]) -> ReportData:
    """The report of the study with these findings alone."""
    dated = {kind: content | {"made": "2026-01-01"} for kind, content in findings.items()}
    return replace(facts, report=facts.report | {"findings": dated})


def html_of(facts: ReportData) -> str:
    return as_html(*page_of(facts))


def text_of(html: str) -> str:
    """A line for each block and table row, without pictures and the configuration.

    What varies by installation and moment is replaced.
    """
    html = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<pre>.*?</pre>", "", html, flags=re.DOTALL)
    html = re.sub(r"</t[dh]><t[dh][^>]*>", " | ", html)
    lines = [unescape(re.sub(r"<[^>]+>", "", line)).strip() for line in html.splitlines()]
    text = "\n".join(line for line in lines if line)
    for varies in (r"Recorded (\d.*)", r"this page \| (.*)", r"digest (\w+)"):
        text = re.sub(varies, lambda match: match[0].replace(match[1], "..."), text)
    return text + "\n"


@pytest.mark.slow
def test_the_page_is_the_golden_file(facts: ReportData) -> None:
    """To renew it, run RENEW_GOLDEN=1 pytest tests/integration/report; then read `git diff`."""
    text = text_of(html_of(facts))
    if os.environ.get("RENEW_GOLDEN"):
        TEXT.write_text(text)
    assert text == TEXT.read_text()


@pytest.mark.slow
def test_the_page_loads_nothing_from_elsewhere_and_is_the_same_each_time(
    study: Study, facts: ReportData
) -> None:
    html = html_of(facts)
    assert html == html_of(read_report_data(study))
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|<iframe|/secret", html)
    links = re.findall(r'(?:src|href)="([^"]{6})', html)
    links += re.findall(r"url\((.)", html)
    # The pictures are within the file.
    assert {link for link in links if not link.startswith("#")} <= {"data:i"}
    diagrams = ("curves", "by trial", "by hours", "importance", "waterfall", "ensemble")
    maps = 2
    assert html.count("<svg") == len(diagrams) + maps
    # Every placeholder colour became a variable.
    assert not re.search(r"#0[1-4][0-9a-f]{4}\b", html)


def test_a_confirmed_per_has_the_number_of_its_seeds(facts: ReportData) -> None:
    first, *others = CONFIRM["configs"]
    *complete, last = first["seeds"]
    stopped = last | {"state": "stopped", "value": None}
    two_seeds = CONFIRM | {"configs": [first | {"seeds": [*complete, stopped]}, *others]}
    text = text_of(html_of(with_findings(facts, confirm=two_seeds)))
    assert "retrained with 2 of 3 fresh seeds, the others did not finish" in text
    # In the sentences for a paper.
    assert "2 of 3 fresh seeds, the others did not finish), baseline 40.00 %" in text

    configs = [config | {"seeds": config["seeds"][:1]} for config in CONFIRM["configs"]]
    text = text_of(html_of(with_findings(facts, confirm=CONFIRM | {"configs": configs})))
    assert "with 95 % intervals over sentences. These" in text
    for_a_paper = "trial 9 26.00 % (24.0..28.0 %; 1 fresh seed)"
    assert f"(with 95 % intervals over sentences): {for_a_paper}" in text


@pytest.mark.parametrize(
    ("decided", "difference", "sentence"),
    [
        (True, -0.1, "The largest decided change was optimizer.name sgd -> adam: -10.00 points"),
        (False, -0.1, "None of them was decided."),
        (True, None, "With optimizer.name sgd -> adam 3 of 3 seeds diverged."),
    ],
)
def test_the_sentences_for_a_paper_name_decided_changes_only(
    facts: ReportData, decided: bool, difference: float | None, sentence: str
) -> None:
    change = step("optimizer.name sgd -> adam", 0.3, difference) | {
        "decided": decided,
        "in_words": "3 of 3 seeds diverged",
    }
    ablation = ABLATION | {"steps": [step("slow", 0.4, None), change]}
    assert sentence in text_of(html_of(with_findings(facts, ablation=ablation)))


def test_the_sentences_for_a_paper_say_what_is_not_decided(facts: ReportData) -> None:
    (comparison,) = CONFIRM["comparisons"]
    open_one = comparison | {"interval": [-0.2, 0.1], "decided": False}
    confirm = CONFIRM | {"comparisons": [open_one]}
    text = text_of(html_of(with_findings(facts, confirm=confirm)))
    assert "points (-20.00 to +10.00, p = 0.0004, not decided)" in text


def test_the_picture_of_an_ensemble_has_a_line_for_each_mean_that_never_goes_back() -> None:
    svg = pictures.ensemble(curve_of_ensembles(4), 2, "geometric", PER)
    lines = []
    for path in re.findall(r'<path d="([^"]*)"', svg):
        lines.append([float(x) for x in re.findall(r"[ML] (\S+) \S+", path)])
    # A legend's sample has 3 points, a grid line 2.
    curves = [xs for xs in lines if len(xs) == 4]
    assert len(curves) == 4
    assert all(xs == sorted(xs) for xs in curves)


def with_texts(content: Any, text: str) -> Any:
    """The finding with this text in place of all texts that are people's, or may be."""
    if isinstance(content, dict):
        return {
            key: text if key in FREE and isinstance(value, str) else with_texts(value, text)
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [text if isinstance(item, str) else with_texts(item, text) for item in content]
    return content


FREE = {"name", "ask", "answer", "in_words", "label", "outcome", "why_not", "path", "reason"}
FREE |= {"start", "from", "to", "a", "b"}
TAGS_OF_PICTURES = {"svg", "g", "path", "text", "defs", "use", "clippath", "rect", "figure"}
TAGS_OF_PICTURES |= {"figcaption", "pre", "image", "lineargradient", "stop"}
ATTRIBUTES_OF_PICTURES = {"role", "aria-label", "viewbox", "d", "style", "transform", "id", "href"}
ATTRIBUTES_OF_PICTURES |= {"x", "y", "width", "height", "clip-path"}


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_text_that_people_write_is_text(make_study: Make, tiny_space: Path, attack: str) -> None:
    tiny_space.write_text(SPACE.replace("  slow:", f"  {json.dumps(attack)}: {{}}\n  slow:"))
    spec = load_spec(tiny_space).model_copy(update={"question": attack})
    study = make_study(spec)
    run_study(study, attack)
    data = read_report_data(study)
    texts = {"name": attack, "items": attack, "description": attack, "unit": attack}
    metric = data.metric.model_copy(update=texts)
    asked = [question.model_copy(update={"ask": attack}) for question in spec.questions]
    data = replace(data, spec=spec.model_copy(update={"metric": metric, "questions": asked}))
    content = with_texts(FINDINGS, attack)
    # The names of fields are the trainer's.
    content["effects"]["interactions"] = EFFECTS["interactions"]
    content["ensemble"]["curve"] = ENSEMBLE["curve"]
    page = page_of(with_findings(data, **content))
    html = Page(as_html(*page))
    assert html.tags <= TAGS | TAGS_OF_PICTURES
    assert html.attributes <= ATTRIBUTES | ATTRIBUTES_OF_PICTURES
    assert "".join(html.texts).count(attack) > 10
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(as_markdown(*page))
    markdown = Page(rendered)
    assert markdown.tags <= TAGS | {"pre"}
    assert markdown.attributes <= {"class"}
    assert "".join(markdown.texts).count(attack) > 10


def test_a_missing_finding_is_a_line_with_its_command(facts: ReportData) -> None:
    html = html_of(with_findings(facts))
    for command in ("confirm", "effects", "ablate --from START --to best", "ensemble"):
        assert f"<code>hpo {command} --study s</code>" in html
    assert "ablate --questions" not in html, "the space asks none"
    assert "unconfirmed" in html
    assert html.count("<svg") == len(("curves", "by trial", "by hours"))
    html = html_of(with_findings(facts, confirm=CONFIRM))
    assert "unconfirmed" not in html
    assert "hpo confirm" not in html
    assert html.index("Confirmed PER") < html.index("Search PER")
    # Confirmed was another trial than the one that is best now.
    of_another = CONFIRM | {"configs": CONFIRM["configs"][1:]}
    assert "hpo confirm --study s" in html_of(with_findings(facts, confirm=of_another))


def test_a_page_says_that_no_trial_is_complete(make_study: Make, tiny_spec: StudySpec) -> None:
    study = make_study(tiny_spec)
    for _ in range(2):
        page = page_of(read_report_data(study))
        html = as_html(*page)
        assert "No trial is complete yet" in html
        assert "<svg" not in html
        assert "No trial is complete yet" in as_markdown(*page)
        trial = study.claim(Process("node0", "1:1"), RECORD)
        assert trial is not None
        study.finish(trial, Failed("no memory", Cause.BAD_CONFIGURATION))


@pytest.mark.slow
def test_a_page_of_a_thousand_trials_is_cut_and_says_so(facts: ReportData) -> None:
    records = []
    curves = {}
    for number in range(1000):
        record = facts.records[number % 12]
        start = record.start if number < 12 else None
        records.append(replace(record, number=number, start=start))
        first_point = facts.curves[number % 12][0]
        curves[number] = [replace(first_point, step=step) for step in range(100)]
    many_maps = with_findings(facts, effects=EFFECTS | {"interactions": [MAP] * (MAPS + 1)})
    html = html_of(replace(many_maps, records=records, curves=curves))
    assert "best of 1000 trials" in html
    assert html.count('data-label="ran on"') == ROWS
    assert html.count("interaction strength") == MAPS
    assert len(html) < 2_000_000


def test_text_and_json_have_the_interval_and_the_findings(study: Study) -> None:
    best = build_report(study)["best"]
    record = next(record for record in study.records() if record.number == best["trial"])
    assert best["interval"] == score_interval([study.scores([record.id])[record.id]], PER)
    assert best["interval"][0] < best["value"] < best["interval"][1]
    lines = invoke("report", "--study", "s").output.splitlines()
    assert lines[1] == (
        "Confirmed PER 26.00 % "
        "(95 % interval 24.0..28.0 %, test, 240 sentences, 3 fresh seeds): trial 9"
    )
    low, high = (100 * bound for bound in best["interval"])
    assert lines[2] == (
        f"Best PER {100 * best['value']:.2f} % "
        f"(95 % interval {low:.1f}..{high:.1f} %, validation, 30 sentences): trial 9"
    )
    assert "the interval ignores that" in lines[3]
    printed = json.loads(invoke("report", "--study", "s", "--json").output)
    assert printed["findings"]["confirm"]["configs"] == named(CONFIRM["configs"], PER)


@pytest.mark.slow
def test_the_files_are_written_or_one_line_says_why_not(
    study: Study, facts: ReportData, tmp_path: Path
) -> None:
    html, md = tmp_path / "r.html", tmp_path / "r.md"
    done = invoke("report", "--study", "s", "--html", html, "--md", md)
    assert done.exit_code == 0
    assert done.output == f"wrote {html}\nwrote {md}\n"
    assert html.read_text() == html_of(facts)
    assert md.read_text() == as_markdown(*page_of(facts))
    nowhere = tmp_path / "none" / "r.html"
    error = refusal("report", "--study", "s", "--html", nowhere)
    assert f"--html {nowhere}: cannot be written (No such file or directory)" in error
    done = invoke("report", "--study", "s", "--json", "--md", md)
    assert json.loads(done.stdout)["study"] == "s"
