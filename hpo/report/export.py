"""One trial's configuration: as YAML, or as the files that a study's script reads."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hpo.space.yaml_text import YamlFault, parse_yaml
from hpo.study.pick import pick_trial
from hpo.study.reader import StudyReader
from hpo.trainer import DEFAULT_TRAINER, SCRIPT_TRAINER

# What `hpo_report` reads, which a script that has a file of its own does not need.
HPO_CONFIG = "hpo-config.json"


def export_script(study: StudyReader, trial: str, out: Path) -> list[str]:
    """Write the files that a trial's script reads into a folder, with its command as `command.sh`.

    Returns lines that tell the user what was written. Raises StudyError, SpecError, OSError.
    """
    record = pick_trial(study, trial)
    render = study.spec.offered("render_in_folder", "export of a script's files")
    config = study.spec.config(record.config)
    rendered = render(config, out.resolve(), study.name, record.number, study.data["path"])
    metric = study.spec.metric
    value = record.state if record.value is None else metric.text(record.value)
    result = f"{metric.name} {value}, code {record.code_version}"
    used = "this folder was used already: export into another one"
    script = [
        "#!/bin/sh",
        f"# Study {study.name}, trial {record.number}: {result}.",
        f"cd {shlex.quote(str(out.resolve()))} || exit 1",
        f'if [ -e started ]; then echo "{used}" >&2; exit 1; fi',
        "touch started",
        rendered.shell_line(),
    ]
    files = {**rendered.files, "command.sh": "\n".join(script) + "\n"}
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    written = ", ".join(str(out / name) for name in files)
    return [f"wrote {written}", f"sh {out / 'command.sh'} trains it again"]


def export_text(study: StudyReader, trial: str) -> str:
    """One trial's configuration as YAML.

    `base` goes into a study file. `args` has the same values under the lab's own names, where the
    trainer has such names. Raises StudyError, SpecError.
    """
    record = pick_trial(study, trial)
    metric = study.spec.metric
    trainer = study.spec.load_trainer()
    config = study.spec.config(record.config)
    result: str = record.state
    if record.value is not None:
        result = f"{metric.name} {metric.text(record.value)} ({trainer.partition})"
    head = [
        f"# Study {study.name}, trial {record.number}: {result}",
        f"# data fingerprint {record.data}, code {record.code_version}, "
        f"{record.host}, {record.device}",
    ]
    content: dict[str, Any] = {}
    if study.spec.trainer not in (DEFAULT_TRAINER, SCRIPT_TRAINER):
        content["trainer"] = study.spec.trainer
    content["base"] = config.flat()

    render = trainer.offers.get("render_in_folder")
    if render:
        rendered = render(config, Path("ATTEMPT"), study.name, record.number, study.data["path"])
        content["command"] = rendered.shell_line()
        content["files"] = _files_to_show(rendered.files)
    arguments = trainer.offers.get("arguments")
    if arguments:
        head += [f"# {line}" for line in arguments.about]
        content["args"] = arguments.of(config, study.data)
    else:
        head.append("# base: goes into a study file.")
        if render:
            head.append("# command, files: how the trial's script was started, and what it read.")
    return "\n".join(head) + "\n" + as_yaml_text(content)


def as_yaml_text(content: Mapping[str, Any]) -> str:
    """YAML that study files and PyYAML read alike."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False)
    return text


def _files_to_show(files: Mapping[str, str]) -> dict[str, str]:
    """Without the file for hpo_report, unless it is the only one."""
    own = {name: text for name, text in files.items() if name != HPO_CONFIG}
    return own or dict(files)


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block, line for line."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    # PyYAML writes YAML 1.1, in which some numbers of YAML 1.2 are text.
    if style is None and not _is_read_as_text(text):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _is_read_as_text(text: str) -> bool:
    """Whether a study file that has it as plain text means this text."""
    try:
        return bool(parse_yaml(text) == text)
    except YamlFault:
        return False


_Dumper.add_representer(str, _represent_text)
