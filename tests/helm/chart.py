"""The chart, rendered by Helm itself (its library, without a cluster)."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/deviceon-backup"
VALUES = CHART / "values.yaml"
UMBRELLA = ROOT / "examples/kubernetes/umbrella"

Manifest = dict[str, Any]

EXAMPLES: dict[str, Path] = {
    **{path.stem: path for path in sorted((ROOT / "examples/kubernetes").glob("*.yaml"))},
    **{path.stem: path for path in sorted((Path(__file__).parent / "values").glob("*.yaml"))},
    "umbrella": UMBRELLA,
}
"""Values that are rendered; the directory is a chart that includes this one."""


def example(name: str) -> dict[str, Any]:
    """Return the values of an example; of the umbrella, those that it gives to this chart."""
    path = EXAMPLES[name]
    document = yaml.safe_load((path / "values.yaml" if path.is_dir() else path).read_text())
    return dict(document["deviceon-backup"] if path.is_dir() else document)


PLAIN = example("plain")
SEALED = example("deployment")
CRON = example("cronjob")


@contextmanager
def umbrella() -> Iterator[Path]:
    """Give a copy of the chart that includes this one, with this one in it."""
    with tempfile.TemporaryDirectory(prefix="deviceon-chart-") as directory:
        copy = Path(directory) / "umbrella"
        shutil.copytree(UMBRELLA, copy)
        shutil.copytree(CHART, copy / "charts/deviceon-backup")
        yield copy


def render(values: Mapping[str, Any], *, path: Path = CHART, upgrade: bool = False) -> dict[str, str]:
    """Return what is rendered, by the names of templates. Raises HelmRenderError, HelmValuesError."""
    with helm.Chart.load(path) as chart:
        chart.validate_schema(dict(values))
        return chart.render(
            dict(values), name="backup", namespace="deviceon", is_install=not upgrade, is_upgrade=upgrade
        )


def rendered(name: str) -> dict[str, str]:
    """Return what is rendered of an example."""
    if not EXAMPLES[name].is_dir():
        return render(example(name))
    with umbrella() as path:
        return render({}, path=path)


def objects(files: Mapping[str, str]) -> list[Manifest]:
    """Return the objects that were rendered."""
    return [
        document
        for name, text in sorted(files.items())
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def stream(name: str) -> str:
    """Return an example's render as one text: notes first, and the files of rules and dashboard by their names."""
    files = rendered(name)
    notes = "".join(f"# {line}".rstrip() + "\n" for text in _notes(files) for line in text.splitlines())
    texts = (text.strip("\n") for name, text in sorted(files.items()) if name.endswith(".yaml") and text.strip())
    whole = notes + "".join(f"---\n{text.removeprefix('---').strip(chr(10))}\n" for text in texts)
    whole = "".join(f"{line.rstrip()}\n" for line in whole.splitlines())
    for path in sorted((CHART / "files").iterdir()):
        for indent in ("  ", "    "):
            inside = "\n".join(indent + line if line else "" for line in path.read_text().splitlines())
            whole = whole.replace(inside, f"{indent}({path.name})")
    return whole


def _notes(files: Mapping[str, str]) -> list[str]:
    return [text for name, text in files.items() if name.endswith("NOTES.txt")]


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return the pods that the objects make: spec and metadata, by kind and name."""
    ways = {"Pod": [], "Deployment": ["spec", "template"], "Job": ["spec", "template"]}
    ways["CronJob"] = ["spec", "jobTemplate", *ways["Job"]]
    found = {}
    for one in manifests:
        if one["kind"] in ways:
            pod = one
            for key in ways[one["kind"]]:
                pod = pod[key]
            found[f"{one['kind']}/{one['metadata']['name']}"] = pod
    return found


def containers(pod: Manifest) -> list[Manifest]:
    """Return all containers of a pod."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def changed(values: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return values with one of them set; `servers.0.x` is within a list."""
    result: Any = copy.deepcopy(dict(values))
    at = result
    *before, last = path.split(".")
    for name in before:
        at = at[int(name)] if isinstance(at, list) else at.setdefault(name, {})
    at[last] = value
    return dict(result)


def of_kind(kind: str, values: Mapping[str, Any]) -> list[Manifest]:
    """Return the objects of a kind that values render."""
    return [one for one in objects(render(values)) if one["kind"] == kind]


def on_node(node: str) -> dict[str, Any]:
    """Return the affinity for one node."""
    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def in_umbrella(values: Mapping[str, Any]) -> dict[str, str]:
    """Render the chart that includes this one."""
    with umbrella() as path:
        return render({"deviceon-backup": values}, path=path)
