"""The tables of docs/compare.md, from results.json."""

from __future__ import annotations

from peers.base import ROOT

PAGE = ROOT / "docs/compare.md"


def write(peers: list[dict]) -> None:
    text = PAGE.read_text()
    text = placed(text, "verdicts", verdicts(peers))
    text = placed(text, "told", "\n".join(told(peer) for peer in peers))
    PAGE.write_text(text)


def placed(text: str, name: str, table: str) -> str:
    """The page with this between the marks of that name."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{PAGE} has no place for {name}")
    return f"{before}{start}{table}{end}{after}"


def verdicts(peers: list[dict]) -> str:
    """One row for each part, one column for each peer."""
    lines = [row(["scenario", *(peer["title"] for peer in peers)]), "|" + "---|" * (len(peers) + 1)]
    for parts in zip(*(peer["parts"] for peer in peers), strict=True):
        lines.append(row([parts[0]["scenario"], *(part["verdict"] for part in parts)]))
    return "\n".join(lines) + "\n"


def told(peer: dict) -> str:
    """What its callers were told, one row for each part."""
    lines = [f"\n### {peer['title']}, {peer['version']}\n"]
    lines.append(f"{peer['shape'][0].upper()}{peer['shape'][1:]}; run on {peer['date']}.")
    settings = [f"- {setting}" for setting in peer["settings"]]
    lines += ["\nSettings:\n", *settings] if settings else ["Settings: all defaults."]
    lines += ["", row(["scenario", "ran", "what callers were told", "also seen"]), "|---|---|---|---|"]
    for part in peer["parts"]:
        cells = [part["scenario"], f"{part['executions']}x", "; ".join(part["told"]), part["seen"]]
        lines.append(row(cells))
    return "\n".join(lines) + "\n"


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
