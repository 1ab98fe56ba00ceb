"""The page around the parts of an HTML report: one file that needs nothing else and prints."""

from __future__ import annotations

from html import escape

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
h1,h2,h3{line-height:1.2} table{border-collapse:collapse;width:100%;margin:1rem 0} svg{width:100%;height:auto}
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid #ccc} td.n{text-align:right}
svg text{font:11px system-ui,sans-serif;fill:currentColor} .grid{stroke:currentColor;opacity:.15}
.border{stroke:currentColor;opacity:.4;stroke-dasharray:3 3} .mark{fill:#d55e00}
.sample{white-space:pre-wrap;overflow-wrap:anywhere} .sample b{opacity:.6;font-weight:normal}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}th,td{border-color:#444}}
"""


def page(title: str, *parts: str) -> str:
    """A whole HTML document. `parts` are HTML, each as a part's `section` gives it."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return (
        f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
