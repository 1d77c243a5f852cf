"""One self-contained HTML page of results: tiles, pictures, curves, bars and tables.

Nothing is fetched from elsewhere: pictures are embedded, plots are inline SVG, and colours follow the reader's light or dark
mode. The page also works without JavaScript, which only filters and enlarges pictures.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from instancevg_jax.files import write_atomically

WIDE = 5  # columns; a table with more does not fit on a phone

Number = int | float
Cell = str | Number | None


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str = ""  # a line below it


@dataclass(frozen=True)
class Tiles:
    """Headline numbers next to each other."""

    title: str
    tiles: Sequence[Tile]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under a header. Floats are shown with three decimals, None as a dash."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Lines:
    """Curves over one x axis, such as losses over steps. Points that are not finite are left out.

    A vertical line is drawn at `mark`, which lies within the curves' x; `mark_label` is its legend.
    """

    title: str
    x_label: str
    series: Mapping[str, Sequence[tuple[Number, Number]]]  # name -> (x, y) in order
    note: str = ""
    mark: Number | None = None
    mark_label: str = ""


@dataclass(frozen=True)
class Bar:
    """One horizontal bar, in [0, 1], with a tick at a reference value."""

    label: str
    value: Number
    reference: Number | None = None


@dataclass(frozen=True)
class Bars:
    """Bars below each other, such as the score of every template. `reference_label` is the legend of the ticks."""

    title: str
    bars: Sequence[Bar]
    reference_label: str = ""
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture (RGB uint8, as `draw.draw_grounding` gives it) and a line below it."""

    image: np.ndarray  # [H, W, 3]
    caption: str = ""
    inside: np.ndarray | None = None  # [H2, W2, 3], shown on request, such as attention maps


@dataclass(frozen=True)
class Gallery:
    """Pictures in a grid."""

    title: str
    pictures: Sequence[Picture]
    note: str = ""


Section = Tiles | Table | Lines | Bars | Gallery


def write_page(
    path: str | Path,
    title: str,
    sections: Sequence[Section],
    *,
    facts: Mapping[str, str] | None = None,
    meanings: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the page to `path`, whole or not at all.

    Args:
        path: the HTML file; its folder is created if necessary.
        title: heading of the page.
        sections: its content, in order.
        facts: lines of the head by name, such as the model and the date.
        meanings: term -> explanation. Shown when one points at or taps the label of a tile, the header of a table or the name
            of a row, and listed at the end.
        notes: paragraphs at the end.
    """
    meanings = meanings or {}
    content = [_section(section, meanings) for section in sections]
    if meanings:
        content.append(_glossary(meanings))
    if notes:
        content.append(_framed("Notes", "".join(f"<p>{escape(note)}</p>" for note in notes)))
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in (facts or {}).items())
    head = f'<dl class="facts">{rows}</dl>' if rows else ""
    if any(isinstance(section, Gallery) and section.pictures for section in sections):
        head += _FILTER
    page = _PAGE.format(title=escape(title), style=_STYLE, head=head, body="\n".join(content), script=_SCRIPT)
    write_atomically(path, page.encode())


def jpeg(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """An RGB picture as a JPEG file."""
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 88])
    assert done, f"cannot encode a picture of shape {image.shape}"
    return data.tobytes()


def _section(section: Section, meanings: Mapping[str, str]) -> str:
    match section:
        case Tiles():
            content = _tiles(section, meanings)
        case Table():
            content = _table(section, meanings)
        case Lines():
            content = _lines(section)
        case Bars():
            content = _bars(section)
        case Gallery():
            content = _gallery(section)
    return _framed(section.title, content, section.note)


def _framed(title: str, content: str, note: str = "") -> str:
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{content}{below}</section>"


def _glossary(meanings: Mapping[str, str]) -> str:
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in meanings.items())
    return f'<section><details><summary>What the metrics mean</summary><dl class="facts">{entries}</dl></details></section>'


def _term(name: str, meanings: Mapping[str, str]) -> str:
    """The name, with its explanation when one points at, focuses or taps it."""
    if name not in meanings:
        return escape(name)
    return f'<span class="term" tabindex="0" data-meaning="{escape(meanings[name])}">{escape(name)}</span>'


def _number(value: Cell) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _tiles(section: Tiles, meanings: Mapping[str, str]) -> str:
    tiles = (
        f"<div><h3>{_term(tile.label, meanings)}</h3><b>{escape(tile.value)}</b><small>{escape(tile.note)}</small></div>"
        for tile in section.tiles
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _table(table: Table, meanings: Mapping[str, str]) -> str:
    """On a narrow screen each row of a wide table becomes a card, which takes its labels from `data-label`."""
    wide = ' class="wide"' if len(table.header) > WIDE else ""
    head = "".join(f"<th>{_term(name, meanings)}</th>" for name in table.header)
    rows = (
        "".join(
            f'<td data-label="{escape(name)}">{_term(_number(cell), meanings)}</td>'
            for name, cell in zip(table.header, row, strict=True)
        )
        for row in table.rows
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table{wide}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _gallery(gallery: Gallery) -> str:
    if not gallery.pictures:
        return '<p class="note">none</p>'
    figures = "".join(map(_figure, gallery.pictures))
    return f'<div class="grid">{figures}</div>'


def _figure(picture: Picture) -> str:
    inside = ""
    if picture.inside is not None:
        inside = f"<details><summary>look inside</summary>{_embedded(picture.inside, 'attention maps and queries')}</details>"
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>"
    return f'<figure tabindex="0">{_embedded(picture.image, picture.caption)}{caption}{inside}</figure>'


def _embedded(image: np.ndarray, text: str) -> str:
    data = base64.b64encode(jpeg(image)).decode()
    return f'<img loading="lazy" alt="{escape(text)}" src="data:image/jpeg;base64,{data}">'


def _ticks(low: Number, high: Number) -> list[float]:
    """About five round numbers that lie in [low, high]."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _range(values: list[Number]) -> tuple[Number, Number]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _lines(plot: Lines) -> str:
    series = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in plot.series.items()}
    points = [point for values in series.values() for point in values]
    if not points:
        return '<p class="note">no data</p>'
    left, top, width, height = 64, 12, 640, 240
    (x0, x1), (y0, y1) = _range([p[0] for p in points]), _range([p[1] for p in points])

    def at(x: Number, y: Number) -> tuple[float, float]:
        return left + (x - x0) / (x1 - x0) * width, top + (1 - (y - y0) / (y1 - y0)) * height

    parts = []
    for y in _ticks(y0, y1):
        v = at(x0, y)[1]
        parts.append(f'<line class="axis" x1="{left}" x2="{left + width}" y1="{v:.1f}" y2="{v:.1f}"/>')
        parts.append(f'<text class="end" x="{left - 8}" y="{v + 4:.1f}">{y:g}</text>')
    for x in _ticks(x0, x1):
        parts.append(f'<text class="middle" x="{at(x, y0)[0]:.1f}" y="{top + height + 18}">{x:g}</text>')
    parts.append(f'<text class="end" x="{left + width}" y="{top + height + 36}">{escape(plot.x_label)}</text>')
    for i, values in enumerate(series.values()):
        path = " ".join(f"{u:.1f},{v:.1f}" for u, v in (at(*point) for point in values))
        parts.append(f'<polyline class="c{i % 6}" points="{path}"/>')
    names = "".join(f'<span><i class="c{i % 6}"></i>{escape(name)}</span>' for i, name in enumerate(series))
    if plot.mark is not None:
        u = at(plot.mark, y0)[0]
        parts.append(f'<line class="mark" x1="{u:.1f}" x2="{u:.1f}" y1="{top}" y2="{top + height}"/>')
        names += f'<span><i class="tick"></i>{escape(plot.mark_label)}</span>'
    box = f"0 0 {left + width + 24} {top + height + 44}"
    return f'<div class="legend">{names}</div><svg viewBox="{box}" role="img">{"".join(parts)}</svg>'


def _bars(plot: Bars) -> str:
    if not plot.bars:
        return '<p class="note">no data</p>'
    legend = f'<div class="legend"><span><i class="tick"></i>{escape(plot.reference_label)}</span></div>'
    rows = "".join(
        f'<div class="label">{escape(bar.label)}</div><div class="track"><b style="width:{_percent(bar.value)}"></b>'
        + ("" if bar.reference is None else f'<i class="tick" style="left:{_percent(bar.reference)}"></i>')
        + f'</div><div class="value">{_number(float(bar.value))}</div>'
        for bar in plot.bars
    )
    return (legend if plot.reference_label else "") + f'<div class="bars">{rows}</div>'


def _percent(value: Number) -> str:
    return f"{100 * min(max(value, 0.0), 1.0) if math.isfinite(value) else 0:.1f}%"


_FILTER = """<p class="filter"><label>Show pictures whose text contains <input type="search" id="filter"></label></p>"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title><style>{style}</style></head>
<body><main><header><h1>{title}</h1>{head}</header>
{body}
</main><script>{script}</script></body></html>
"""

_SCRIPT = """
const figures = [...document.querySelectorAll("figure")], filter = document.getElementById("filter");
filter?.addEventListener("input", () => {
  const wanted = filter.value.trim().toLowerCase();
  for (const figure of figures) figure.hidden = !figure.textContent.toLowerCase().includes(wanted);
});
for (const figure of figures) {
  figure.addEventListener("click", event => { if (!event.target.closest("details")) figure.classList.toggle("large"); });
  figure.addEventListener("keydown", event => { if (event.key === "Enter") figure.classList.toggle("large"); });
}
"""

_STYLE = """
:root { --page:#f6f7f9; --card:#fff; --ink:#1b1e24; --soft:#5c6473; --line:#dfe3ea; --bar:#2f7de1; --tick:#d6453d;
  --c0:#2f7de1; --c1:#e2602c; --c2:#2b9a55; --c3:#b23b8c; --c4:#b58900; --c5:#6b57d6; }
@media (prefers-color-scheme: dark) { :root { --page:#14161a; --card:#1d2026; --ink:#e8eaee; --soft:#9aa3b2; --line:#333842;
  --bar:#4b93ee; --tick:#ff7b72; --c0:#5aa2f5; --c1:#ff8a5c; --c2:#4fc47c; --c3:#e07bc0; --c4:#e0b53a; --c5:#a194ff; } }
body { margin:0; background:var(--page); color:var(--ink); font:15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width:1120px; margin:0 auto; padding:24px 20px 64px; }
h1 { font-size:26px; margin:8px 0 12px; } h2 { font-size:17px; margin:0 0 12px; }
h3 { font-size:14px; margin:0; color:var(--soft); }
header { margin:0 0 18px; } .facts { display:grid; grid-template-columns:max-content 1fr; gap:2px 14px; margin:0; font-size:13px; }
.facts dt { color:var(--soft); } .facts dd { margin:0; overflow-wrap:anywhere; }
.filter { margin:14px 0 0; } input { font:inherit; color:inherit; background:var(--card); border:1px solid var(--line);
  border-radius:6px; padding:4px 8px; max-width:100%; box-sizing:border-box; }
section { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:18px 20px; margin:0 0 18px; }
.note { color:var(--soft); margin:10px 0 0; } section p { max-width:80ch; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit, minmax(128px, 1fr)); gap:12px; }
.tiles > div { border:1px solid var(--line); border-radius:8px; padding:10px 14px; }
.tiles b { display:block; font-size:28px; line-height:1.25; font-variant-numeric:tabular-nums; } small { color:var(--soft); }
.term { position:relative; border-bottom:1px dotted var(--soft); cursor:help; }
.term:is(:hover, :focus)::after { content:attr(data-meaning); position:absolute; left:0; top:1.7em; z-index:2; width:260px;
  max-width:70vw; padding:8px 10px; border-radius:6px; background:var(--ink); color:var(--card);
  font:13px/1.4 system-ui, sans-serif; white-space:normal; text-align:left; }
summary { cursor:pointer; font-weight:600; } details dl { margin-top:12px; }
th:nth-last-child(-n+3) .term::after { left:auto; right:0; }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; }
th, td { padding:6px 18px 6px 0; text-align:right; border-bottom:1px solid var(--line); white-space:nowrap; }
th:first-child, td:first-child { text-align:left; } th { color:var(--soft); font-weight:600; } tr:last-child td { border-bottom:0; }
.grid { display:grid; grid-template-columns:repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap:16px; }
figure { margin:0; cursor:zoom-in; } figure.large { grid-column:1 / -1; cursor:zoom-out; }
img { width:100%; border-radius:6px; display:block; }
figure summary { font-weight:400; font-size:13px; } figure details img { margin-top:6px; }
figcaption { color:var(--soft); font-size:13px; margin-top:6px; } [hidden] { display:none; }
svg { width:100%; max-width:760px; display:block; } svg text { font-size:12px; fill:var(--soft); }
.end { text-anchor:end; } .middle { text-anchor:middle; } .axis { stroke:var(--line); }
.mark { stroke:var(--tick); stroke-dasharray:4 3; }
polyline { fill:none; stroke-width:1.8; stroke-linejoin:round; }
.c0 { stroke:var(--c0); background:var(--c0); } .c1 { stroke:var(--c1); background:var(--c1); }
.c2 { stroke:var(--c2); background:var(--c2); } .c3 { stroke:var(--c3); background:var(--c3); }
.c4 { stroke:var(--c4); background:var(--c4); } .c5 { stroke:var(--c5); background:var(--c5); }
.legend { display:flex; flex-wrap:wrap; gap:4px 18px; color:var(--soft); font-size:13px; margin-bottom:8px; }
.legend i { display:inline-block; width:14px; height:3px; margin:0 6px 3px 0; vertical-align:middle; }
.legend i.tick { width:2px; height:13px; position:static; }
.bars { display:grid; grid-template-columns:max-content minmax(120px, 1fr) max-content; gap:6px 12px; align-items:center; }
.track { position:relative; height:14px; background:var(--line); border-radius:4px; }
.track b { position:absolute; inset:0 auto 0 0; background:var(--bar); border-radius:4px; }
.tick { position:absolute; top:-3px; bottom:-3px; width:2px; background:var(--tick); }
.value { font-variant-numeric:tabular-nums; }
@media (max-width: 720px) {
  main { padding:12px 10px 40px; } section { padding:14px; } .facts { grid-template-columns:1fr; } .facts dd { margin-bottom:6px; }
  table { width:100%; } th, td { padding-right:8px; white-space:normal; }
  .wide thead { display:none; } .wide, .wide tbody, .wide tr, .wide td { display:block; }
  .wide tr { border:1px solid var(--line); border-radius:8px; padding:8px 12px; margin:0 0 10px; }
  .wide td { display:flex; justify-content:space-between; gap:12px; padding:2px 0; border:0; }
  .wide td::before { content:attr(data-label); color:var(--soft); text-align:left; }
  .wide td:first-child { font-weight:600; } .bars { grid-template-columns:1fr max-content; } .bars .label { grid-column:1 / -1; }
}
"""
