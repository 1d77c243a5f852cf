"""One self-contained HTML page of results: tiles, pictures, curves, bars and tables.

Nothing is fetched from elsewhere: pictures are embedded, plots are inline SVG, and colours follow the reader's light or dark
mode. Without JavaScript, which filters and enlarges pictures and shows explanations, all content can still be read.
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

QUALITY = 82  # of embedded pictures, 1 to 100

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
    folded: str = ""  # if not empty, the table opens when one selects this text


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
class Figure:
    """Panels next to each other, such as prediction and truth, and what they show. Images are RGB uint8 [H, W, 3]."""

    panels: Sequence[tuple[str, np.ndarray]]  # (heading, image)
    caption: str = ""
    detail: str = ""  # a line below the caption
    inside: np.ndarray | None = None  # shown on request, such as attention maps


@dataclass(frozen=True)
class Gallery:
    """Pictures in a grid."""

    title: str
    pictures: Sequence[Figure]
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
    has_pictures = [isinstance(section, Gallery) and bool(section.pictures) for section in sections]
    content = [_section(section, meanings, f"s{i}") for i, section in enumerate(sections)]
    if any(has_pictures):
        content.insert(has_pictures.index(True), _FILTER)
    if meanings:
        content.append(_glossary(meanings))
    if notes:
        content.append(_framed("Notes", "".join(f"<p>{escape(note)}</p>" for note in notes)))
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in (facts or {}).items())
    head = f'<dl class="facts">{rows}</dl>' if rows else ""
    if len(sections) > 1:
        links = (f'<a href="#s{i}">{escape(section.title)}</a>' for i, section in enumerate(sections))
        head += f"<nav>{''.join(links)}</nav>"
    page = _PAGE.format(title=escape(title), style=_STYLE, head=head, body="\n".join(content), script=_SCRIPT)
    write_atomically(path, page.encode())


def _section(section: Section, meanings: Mapping[str, str], anchor: str) -> str:
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
            return _framed(section.title, _gallery(section), attributes=f' id="{anchor}"')
    return _framed(section.title, content, section.note, f' id="{anchor}"')


def _framed(title: str, content: str, note: str = "", attributes: str = "") -> str:
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section{attributes}><h2>{escape(title)}</h2>{content}{below}</section>"


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
    """A table that scrolls sideways on a narrow screen, below its first column."""
    head = "".join(f"<th>{_term(name, meanings)}</th>" for name in table.header)
    rows = ("".join(f"<td>{_term(_number(cell), meanings)}</td>" for cell in row) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    content = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return f"<details><summary>{escape(table.folded)}</summary>{content}</details>" if table.folded else content


def _gallery(gallery: Gallery) -> str:
    if not gallery.pictures:
        return '<p class="note">none</p>'
    lead = f'<p class="lead">{escape(gallery.note)}</p>' if gallery.note else ""
    return f'{lead}<div class="grid">{"".join(map(_figure, gallery.pictures))}</div>'


def _figure(picture: Figure) -> str:
    panels = "".join(
        f"<div><small>{escape(heading)}</small>{_embedded(image, f'{picture.caption}: {heading}')}</div>"
        for heading, image in picture.panels
    )
    inside = ""
    if picture.inside is not None:
        inside = f"<details><summary>look inside</summary>{_embedded(picture.inside, 'attention maps and queries')}</details>"
    caption = f"<figcaption><b>{escape(picture.caption)}</b> <small>{escape(picture.detail)}</small></figcaption>"
    return f'<figure tabindex="0">{caption}<div class="panels">{panels}</div>{inside}</figure>'


def _embedded(image: UInt8[np.ndarray, "H W 3"], text: str) -> str:
    done, data = cv2.imencode(".webp", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    assert done, f"cannot encode a picture of shape {image.shape}"
    return f'<img loading="lazy" alt="{escape(text)}" src="data:image/webp;base64,{base64.b64encode(data.tobytes()).decode()}">'


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
        parts.append(f'<text class="middle" x="{at(x, y0)[0]:.1f}" y="{top + height + 22}">{x:g}</text>')
    parts.append(f'<text class="end" x="{left + width}" y="{top + height + 48}">{escape(plot.x_label)}</text>')
    for i, values in enumerate(series.values()):
        path = " ".join(f"{u:.1f},{v:.1f}" for u, v in (at(*point) for point in values))
        parts.append(f'<polyline class="c{i % 6}" points="{path}"/>')
    names = "".join(f'<span><i class="c{i % 6}"></i>{escape(name)}</span>' for i, name in enumerate(series))
    if plot.mark is not None:
        u = at(plot.mark, y0)[0]
        parts.append(f'<line class="mark" x1="{u:.1f}" x2="{u:.1f}" y1="{top}" y2="{top + height}"/>')
        names += f'<span><i class="tick"></i>{escape(plot.mark_label)}</span>'
    box = f"0 0 {left + width + 24} {top + height + 56}"
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


_FILTER = """<p class="filter"><label>Filter the pictures <input type="search" id="filter" placeholder="red circle"></label>
<output id="matches"></output></p>"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title><style>{style}</style></head>
<body><main><header><h1>{title}</h1>{head}</header>
{body}
</main><div id="meaning" role="tooltip" hidden></div><script>{script}</script></body></html>
"""

_SCRIPT = """
const figures = [...document.querySelectorAll("figure")], filter = document.getElementById("filter");
filter?.addEventListener("input", () => {
  const wanted = filter.value.trim().toLowerCase();
  for (const figure of figures)
    figure.hidden = !figure.querySelector("figcaption").textContent.toLowerCase().includes(wanted);
  for (const grid of document.querySelectorAll(".grid"))
    grid.closest("section").hidden = !grid.querySelector("figure:not([hidden])");
  const shown = figures.filter(figure => !figure.hidden).length;
  document.getElementById("matches").textContent = wanted ? `${shown} of ${figures.length}` : "";
});
for (const figure of figures) {
  const panels = figure.querySelector(".panels");
  panels.addEventListener("click", () => figure.classList.toggle("large"));
  figure.addEventListener("keydown", event => {
    if (event.key === "Enter" && event.target === figure) figure.classList.toggle("large");
  });
}
const meaning = document.getElementById("meaning");
function explain(event) {
  const term = event.target.closest?.(".term");
  meaning.hidden = !term;
  if (!term) return;
  meaning.textContent = term.dataset.meaning;
  const box = term.getBoundingClientRect(), width = document.documentElement.clientWidth, below = box.bottom + 6;
  meaning.style.left = `${Math.max(8, Math.min(box.left, width - meaning.offsetWidth - 8))}px`;
  const fits = below + meaning.offsetHeight < innerHeight;
  meaning.style.top = `${fits ? below : box.top - meaning.offsetHeight - 6}px`;
}
for (const kind of ["mouseover", "focusin", "click"]) document.addEventListener(kind, explain);
addEventListener("scroll", () => { meaning.hidden = true; }, { passive: true, capture: true });
addEventListener("keydown", event => { if (event.key === "Escape") meaning.hidden = true; });
"""

_STYLE = """
:root { --page:#f6f7f9; --card:#fff; --ink:#1b1e24; --soft:#5c6473; --line:#dfe3ea; --bar:#2f7de1; --tick:#d6453d;
  --c0:#2f7de1; --c1:#e2602c; --c2:#2b9a55; --c3:#b23b8c; --c4:#b58900; --c5:#6b57d6; }
@media (prefers-color-scheme: dark) { :root { --page:#14161a; --card:#1d2026; --ink:#e8eaee; --soft:#9aa3b2; --line:#333842;
  --bar:#4b93ee; --tick:#ff7b72; --c0:#5aa2f5; --c1:#ff8a5c; --c2:#4fc47c; --c3:#e07bc0; --c4:#e0b53a; --c5:#a194ff; } }
body { margin:0; background:var(--page); color:var(--ink); font:15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width:1120px; margin:0 auto; padding:24px 20px 64px; }
h1 { font-size:26px; line-height:1.2; margin:8px 0 14px; } h2 { font-size:17px; margin:0 0 12px; }
h3 { font-size:14px; margin:0; color:var(--soft); }
header { margin:0 0 18px; } .facts { display:grid; grid-template-columns:max-content 1fr; gap:2px 14px; margin:0; font-size:13px; }
.facts dt { color:var(--soft); } .facts dd { margin:0; overflow-wrap:anywhere; }
nav { display:flex; flex-wrap:wrap; gap:6px; margin:14px 0 0; font-size:13px; }
nav a { color:inherit; text-decoration:none; background:var(--card); border:1px solid var(--line); border-radius:99px;
  padding:2px 10px; white-space:nowrap; } nav a:hover { border-color:var(--soft); }
.filter { margin:0 0 18px; color:var(--soft); }
input { font:inherit; color:var(--ink); background:var(--card); border:1px solid var(--line); border-radius:6px;
  padding:5px 8px; margin:0 8px; max-width:100%; box-sizing:border-box; }
section { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:18px 20px; margin:0 0 18px; }
.note, .lead { color:var(--soft); margin:10px 0 0; font-size:13px; } .lead { margin:-8px 0 12px; } section p { max-width:80ch; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit, minmax(128px, 1fr)); gap:12px; }
.tiles > div { border:1px solid var(--line); border-radius:8px; padding:10px 14px; }
.tiles b { display:block; font-size:28px; line-height:1.25; font-variant-numeric:tabular-nums; } small { color:var(--soft); }
.term { border-bottom:1px dotted var(--soft); cursor:help; }
#meaning { position:fixed; z-index:2; max-width:min(280px, calc(100vw - 36px)); padding:8px 10px; border-radius:6px;
  background:var(--ink); color:var(--card); font-size:13px; line-height:1.4; pointer-events:none; }
summary { cursor:pointer; font-weight:600; } details dl, details .scroll { margin-top:12px; }
.scroll { overflow-x:auto; background:linear-gradient(to left, var(--card) 30%, transparent) right / 48px 100% no-repeat local,
  linear-gradient(to left, #8886, transparent) right / 12px 100% no-repeat scroll; }
table { border-collapse:separate; border-spacing:0; font-variant-numeric:tabular-nums; }
th, td { padding:6px 18px 6px 0; text-align:right; border-bottom:1px solid var(--line); white-space:nowrap; }
th:first-child, td:first-child { text-align:left; position:sticky; left:0; background:var(--card); }
th { color:var(--soft); font-weight:600; } tr:last-child td { border-bottom:0; }
.grid { display:grid; grid-template-columns:repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap:20px 16px; }
figure { margin:0; min-width:0; } figure.large, figure:has(details[open]) { grid-column:1 / -1; }
.panels { display:flex; gap:4px; cursor:zoom-in; margin-top:4px; } .large .panels { cursor:zoom-out; }
.panels > div { flex:1 1 0; min-width:0; } .panels small { display:block; font-size:12px; overflow:hidden; text-overflow:ellipsis;
  white-space:nowrap; }
img { width:100%; border-radius:4px; display:block; }
figure summary { font-weight:400; font-size:13px; margin-top:4px; } figure details img { margin-top:6px; max-width:800px; }
figcaption { font-size:14px; } figcaption small { display:block; font-size:13px; } [hidden] { display:none; }
svg { width:100%; max-width:760px; display:block; overflow:visible; } svg text { font-size:12px; fill:var(--soft); }
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
  main { padding:12px 10px 40px; } section { padding:14px; } h1 { font-size:21px; }
  header .facts { display:block; } header :is(dt, dd) { display:inline; } header dt::after { content:": "; }
  header dd::after { content:"\\A"; white-space:pre; }
  details .facts { grid-template-columns:1fr; } details dd { margin-bottom:6px; }
  nav { flex-wrap:nowrap; overflow-x:auto; padding-bottom:4px; }
  th, td { padding:6px 12px 6px 0; font-size:13px; } td:first-child, th:first-child { min-width:110px; white-space:normal; }
  .grid { display:flex; overflow-x:auto; scroll-snap-type:x mandatory; gap:14px; padding-bottom:6px; }
  figure { flex:0 0 92%; scroll-snap-align:start; } .large .panels { flex-direction:column; }
  svg text { font-size:22px; } polyline { stroke-width:3; }
  .bars { grid-template-columns:1fr max-content; } .bars .label { grid-column:1 / -1; }
}
"""
