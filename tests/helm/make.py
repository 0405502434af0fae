"""Make what is generated of the chart: its README, the golden renders, and the schema but for its types.

    python -m tests.helm.make

Comments in values.yaml that begin with `# --` describe the value below them; they go into README.md and
values.schema.json, whose types are written by hand. A test holds that all of it is current.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from service.config import json_schema
from service.portal.settings import PortalSettings
from tests.helm import chart

README = chart.CHART / "README.md"
SCHEMA = chart.CHART / "values.schema.json"
GOLDEN = Path(__file__).parent / "golden"

_KEY = re.compile(r"^(\s*)([A-Za-z]+):(?:\s|$)")
_OURS = ("state_dir", "http")
"""What the chart sets in the configuration."""
_PLAIN_SECRET = (
    "[Pp][Aa][Ss][Ss][Ww]|[Pp][Aa][Ss][Ss][Pp][Hh][Rr][Aa][Ss][Ee]|[Pp][Ww][Dd]|[Ss][Ee][Cc][Rr][Ee][Tt]|[Tt][Oo][Kk][Ee][Nn]"
    "|[Cc][Rr][Ee][Dd][Ee][Nn][Tt][Ii][Aa][Ll]|[Aa][Pp][Ii]_?[Kk][Ee][Yy]|[Aa][Cc][Cc][Oo][Uu][Nn][Tt]_[Kk][Ee][Yy]"
)
"""Names of storage options that hold secrets: the service refuses more of them, when it reads its configuration."""


def described(values: str) -> dict[str, str]:
    """Return the description of each value that has one, by its path."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    said: list[str] = []
    for line in values.splitlines():
        text = line.strip()
        if text.startswith("# -- "):
            said = [text[5:]]
        elif text.startswith("# ") and said:
            said.append(text[2:])
        elif key := _KEY.match(line):
            depth = len(key[1])
            path = [*(each for each in path if each[0] < depth), (depth, key[2])]
            if said:
                found[".".join(name for _, name in path)] = " ".join(said)
            said = []
    return found


def schema() -> str:
    """Return values.schema.json with descriptions and the configuration as they are now."""
    document = json.loads(SCHEMA.read_text())
    kept = {name: one for name, one in document["definitions"].items() if not name.startswith("config")}
    document["definitions"] = kept | _configuration()
    for path, text in described(chart.VALUES.read_text()).items():
        _property(document, path.split("."))["description"] = text
    return json.dumps(document, indent=2) + "\n"


def _property(document: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """Return the schema of a value, where it can be described."""
    at = document
    for name in path:
        reference = at.get("$ref") or at.get("allOf", [{}])[0].get("$ref")
        if reference:
            at = document["definitions"][reference.rpartition("/")[2]]
        at = at["properties"][name]
    if "$ref" in at:
        at["allOf"] = [{"$ref": at.pop("$ref")}]  # draft 7 reads nothing beside $ref
    return at


def _configuration() -> dict[str, Any]:
    """Return the configuration's JSON Schema for within this one, without what the chart sets and without secrets."""
    whole = json.loads(json.dumps(json_schema()).replace("#/$defs/", "#/definitions/config"))
    models = {f"config{name}": _plain(model) for name, model in whole.pop("$defs").items()}
    top = _plain(whole)
    for name in ("$schema", "title", "required"):  # a server of `servers` gives only what is its own
        top.pop(name, None)
    for name in _OURS:
        del top["properties"][name]
    del models["configServiceSettings"]["properties"]["socket"]
    _type_where_it_is_needed(top, models)
    del models["configTargetSettings"]["required"]  # what all servers have in common may lack it
    target = models["configTargetSettings"]["properties"]
    target["url"]["not"] = {"pattern": "^[^/]*://[^/]*:[^/]*@"}
    target["storage_options"]["patternProperties"] = {_PLAIN_SECRET: {"type": ["object", "array", "boolean", "null"]}}
    return {"config": top, **dict(sorted(models.items())), **_portal()}


def _portal() -> dict[str, Any]:
    """Return the JSON Schema of portal.yaml, likewise."""
    whole = json.loads(json.dumps(PortalSettings.model_json_schema()).replace("#/$defs/", "#/definitions/configPortal"))
    models = {f"configPortal{name}": _plain(model) for name, model in whole.pop("$defs").items()}
    del models["configPortalServiceSettings"]["properties"]["socket"]
    top = _plain(whole)
    top.pop("required")  # by the templates: only when there is a portal
    for name in ("listen", "socket", "socket_group"):
        del top["properties"][name]
    return {"configPortal": top, **dict(sorted(models.items()))}


def _type_where_it_is_needed(top: dict[str, Any], models: dict[str, Any]) -> None:
    """Have `type` required of sources; the server of drills does without."""
    for model in models.values():
        model["required"] = [name for name in model.get("required", []) if name != "type"]
    top["properties"]["sources"]["items"]["required"] = ["type"]


def _plain(node: Any) -> Any:
    """Return a schema without what only says how it looks, and what not every validator knows."""
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        name: {key: _plain(one) for key, one in value.items()} if name == "properties" else _plain(value)
        for name, value in node.items()
        if name not in ("title", "format", "discriminator", "default")
    }


def readme() -> str:
    """Return the chart's README."""
    about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    rows = [f"| `{path}` | {_shown(value)} | {text} |" for path, value, text in _documented()]
    return "\n".join([_HEAD.format(**about).strip(), "", "| Value | Default | |", "|---|---|---|", *rows, ""])


def _documented() -> Iterator[tuple[str, Any, str]]:
    values = yaml.safe_load(chart.VALUES.read_text())
    for path, text in described(chart.VALUES.read_text()).items():
        value = values
        for name in path.split("."):
            value = value[name]
        yield path, value, text.replace("|", "\\|")


def _shown(value: Any) -> str:
    return f"`{json.dumps(value)}`"


_HEAD = """
# {name}

{description}: chart {version} of DeviceOn Backup {appVersion}, for Kubernetes 1.29 and newer.

[docs/KUBERNETES.md](../../docs/KUBERNETES.md) leads from nothing to a running backup, shows the three modes, and how to
restore in a cluster. This page has every value; it is made from `values.yaml` by `make chart`.

```
helm upgrade --install backup helm/deviceon-backup --namespace deviceon --values values.yaml    # (needs a cluster)
```

`values.schema.json` refuses keys that it does not know, also within `config`, and secrets that are written out.
"""


def golden() -> dict[str, str]:
    """Return the golden renders by the names of their files."""
    return {f"{name}.yaml": chart.stream(name) for name in chart.EXAMPLES}


def main() -> None:
    """Write everything."""
    SCHEMA.write_text(schema())
    README.write_text(readme())
    GOLDEN.mkdir(exist_ok=True)
    wanted = golden()
    for file in GOLDEN.iterdir():
        if file.name not in wanted:
            file.unlink()
    for name, text in wanted.items():
        (GOLDEN / name).write_text(text)


if __name__ == "__main__":
    main()
