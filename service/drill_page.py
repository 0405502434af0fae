"""The page of a drill's report: one HTML file without scripts or anything from elsewhere, which prints well. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from service.terminal import size

_STYLE = """
body { font: 11pt/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 46rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.1rem; margin: 1.6rem 0 0.4rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.6rem 0.25rem 0; border-bottom: 1px solid #ddd; }
th { font-weight: 600; width: 15rem; } td { overflow-wrap: anywhere; }
.verdict { padding: 0.7rem 1rem; border-left: 0.5rem solid; font-weight: 600; margin: 1rem 0; }
.passed { border-color: #1b7f3b; background: #eaf6ee; } .failed { border-color: #b3261e; background: #fbecea; }
code { font-size: 0.9em; overflow-wrap: anywhere; } footer { margin-top: 2rem; color: #555; font-size: 0.9em; }
@page { margin: 18mm; }
@media print { body { margin: 0; max-width: none; } h2, tr, .verdict { break-inside: avoid; } h2 { break-after: avoid; }
  .verdict { print-color-adjust: exact; } }
"""


def page(report: Mapping[str, Any]) -> str:
    """Return the page of a report."""
    archive, machine, passed = report["archive"], report["machine"], report["result"] == "passed"
    title = f"Restore drill of {archive['name']}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{_text(machine['product'])} on {_text(machine['host'])}, {_text(report['started'])}</p>",
        f'<p class="verdict {"passed" if passed else "failed"}">{_text(_verdict(report))}</p>',
        *_section("The archive", _rows(archive)),
        *_section("What was restored, and where", _rows(report["restored_into"])),
        *_section("What was counted and compared", _rows(report["counts"])),
        *_list("How it was compared", report["compared"]),
        *_list("Notes", report["notes"]),
        *_section("How long it took (seconds)", _rows({**report["stages"], "all": report["seconds"]})),
        *_section("Machine and versions", [*_rows(report["machine"]), *_rows(report["versions"])]),
    ]
    for requirement in report["requirements"]:
        parts.append(f"<h2>{_text(requirement['id'])}: {_text(requirement['title'])}</h2>")
        parts += _bullets("This drill shows", requirement["shown"])
        parts += _bullets("It does not show", requirement["not_shown"])
    parts.append(f"<footer>{_signed(report)}</footer>")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(title)}</title>\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _verdict(report: Mapping[str, Any]) -> str:
    if report["result"] == "passed":
        return "Passed: the archive was restored, compared and removed again."
    failure = report["failure"]
    hint = f" What to do: {failure['hint']}" if failure["hint"] else ""
    return f"Failed in the stage {failure['stage']}: {failure['message']} ({failure['code']}).{hint}"


def _section(title: str, rows: Iterable[str]) -> list[str]:
    told = list(rows)
    return [f"<h2>{_text(title)}</h2>", "<table>", *told, "</table>"] if told else []


def _rows(values: Mapping[str, Any]) -> list[str]:
    return [
        f"<tr><th>{_text(name.replace('_', ' '))}</th><td>{_text(value)}{_in_units(name, value)}</td></tr>"
        for name, value in values.items()
        if value is not None
    ]


def _in_units(name: str, value: Any) -> str:
    return f" ({size(value)})" if name in ("size", "raw_bytes", "bytes") and value >= 1000 else ""


def _list(title: str, sentences: Iterable[str]) -> list[str]:
    told = list(sentences)
    return [f"<h2>{_text(title)}</h2>", *_items(told)] if told else []


def _bullets(title: str, sentences: Iterable[str]) -> list[str]:
    told = list(sentences)
    return [f"<p>{_text(title)}:</p>", *_items(told)] if told else []


def _items(sentences: Iterable[str]) -> list[str]:
    return ["<ul>", *(f"<li>{_text(sentence)}</li>" for sentence in sentences), "</ul>"]


def _signed(report: Mapping[str, Any]) -> str:
    name = f"<code>{_text(report['id'])}.json</code>"
    if report["signature"] is None:
        return f"This page shows {name}, which is not signed."
    return (
        f"This page shows {name}. The evidence is that file, which this machine's TPM has signed with "
        f"<code>{_text(report['signature']['fingerprint'])}</code>; "
        f"<code>deviceon-backup drill --check {_text(report['id'])}.json</code> checks it."
    )


def _text(value: Any) -> str:
    return escape(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
