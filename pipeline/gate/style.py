"""The report's style sheet: light and dark, for laptops, phones and paper."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --paper: #f7f7f5; --card: #ffffff; --ink: #1c1e21; --faint: #555b63; --line: #d8dbdf; --grid: #e6e8eb;
  --good: #0c6b3d; --bad: #b3261e; --odd: #8a4b00; --link: #0b57a4;
  --good-tint: 22, 145, 84; --bad-tint: 214, 59, 48;
  --s0: #0b62a4; --s1: #b3470f; --s2: #0f7a5a; --s3: #8e3f97; --s4: #8a6100; --s5: #c2255c; --s6: #33707f;
  --s7: #5d6100;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131518; --card: #1b1e22; --ink: #e9ebee; --faint: #a9b0b9; --line: #3a3f46; --grid: #2b2f35;
    --good: #62d493; --bad: #ff8f85; --odd: #f0b45a; --link: #8cc2ff;
    --good-tint: 60, 200, 125; --bad-tint: 255, 100, 90;
    --s0: #6db3f2; --s1: #f59a5c; --s2: #4fcf9f; --s3: #d495e3; --s4: #e0b341; --s5: #ff85ae; --s6: #8fd0e0;
    --s7: #c9cc62;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1.5rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: .25rem 0 .75rem; max-width: 56rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p, li, dd { max-width: 46rem; }
p { margin: .5rem 0; }
a { color: var(--link); }
section { margin-top: 2.75rem; scroll-margin-top: 1rem; }
.kind { color: var(--faint); font-weight: 600; margin: 0; }
.lead { font-size: 1.1rem; }
.faint, .more { color: var(--faint); }
.more { display: block; font-size: .85rem; }
.whole { white-space: nowrap; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.empty { border: 1px dashed var(--line); border-radius: 8px; padding: .75rem 1rem; color: var(--faint); }

.facts { display: flex; flex-wrap: wrap; gap: .75rem 2rem; margin: 1.25rem 0; }
.facts dt { color: var(--faint); font-size: .85rem; }
.facts dd { margin: 0; font-weight: 600; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: 1rem 0 0; padding: 0; }
nav a { display: inline-block; padding: .2rem 0; }

.scroll {
  position: relative; overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  margin: .75rem 0; max-width: 100%; width: fit-content;
}
.scroll:focus-visible, pre:focus-visible, summary:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; overflow-wrap: normal; }
th, td { padding: .5rem .65rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-size: .85rem; color: var(--faint); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; }
thead th:first-child, tbody th[scope=row] { position: sticky; left: 0; z-index: 1; background: var(--card); }
tbody th[scope=row] { min-width: 7rem; max-width: 15rem; overflow-wrap: break-word; }
thead th:first-child, tbody th[scope=row] { border-right: 1px solid var(--grid); }
th[scope=rowgroup] { font-size: .85rem; color: var(--faint); background: var(--paper); }
th[scope=rowgroup] span { position: sticky; left: .65rem; }
.num { text-align: right; white-space: nowrap; }
.text { min-width: 14rem; max-width: 28rem; overflow-wrap: anywhere; white-space: pre-wrap; }
.good { color: var(--good); } .bad { color: var(--bad); } .odd { color: var(--odd); } .none { color: var(--faint); }
.verdict { font-weight: 600; white-space: nowrap; }
.taken {
  display: inline-block; margin-top: .15rem; padding: 0 .45rem; border: 1px solid currentColor; border-radius: 1rem;
  font-size: .75rem; font-weight: 600; color: var(--good); white-space: nowrap;
}
.heat td { text-align: right; white-space: nowrap; }
.heat .more { color: var(--ink); }

svg { display: block; }
svg text { fill: var(--ink); font-size: 13px; font-family: inherit; }
svg .faint { fill: var(--faint); font-size: 12px; }
svg .name { fill: var(--c); font-weight: 600; paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.grid { stroke: var(--grid); stroke-width: 1; }
.axis { stroke: var(--faint); stroke-width: 1; }
.leader { stroke: var(--c); stroke-width: 1; opacity: .6; }
.line { fill: none; stroke: var(--c); stroke-width: 2; }
.bar { fill: none; stroke: var(--c); stroke-width: 1.5; }
.mark { fill: var(--c); stroke: var(--card); stroke-width: 1; }
.mark.open { fill: var(--card); stroke: var(--c); stroke-width: 2; }
svg.inline { width: 130px; height: 24px; }
.good .bar, .good .mark { --c: var(--good); } .bad .bar, .bad .mark { --c: var(--bad); }
.none .bar, .none .mark { --c: var(--faint); }
.plain { --c: var(--ink); }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); }
.s4 { --c: var(--s4); } .s5 { --c: var(--s5); } .s6 { --c: var(--s6); } .s7 { --c: var(--s7); }
figure { margin: .75rem 0; }
.chart {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem; width: fit-content;
  max-width: 100%;
}
.chart svg { max-width: 100%; height: auto; }
.legend {
  display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; margin: .5rem 0 0; padding: 0; font-size: .85rem;
}
.legend li { display: flex; align-items: center; gap: .4rem; }
.legend svg { flex: none; }
.narrow { display: none; }

.sheet th, .sheet td { padding: .3rem; border: 0; }
.sheet thead th { padding: .5rem .3rem; max-width: 112px; overflow-wrap: anywhere; }
.sheet tbody th[scope=row] { min-width: 0; max-width: none; }
.sheet img { display: block; width: 112px; height: auto; border-radius: 4px; background: var(--grid); }
.sheet .small { image-rendering: pixelated; border-radius: 0; }

.equation { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .5rem .75rem; }
dl.terms dt { font-weight: 600; margin-top: .5rem; }
dl.terms dd { margin: 0; }
summary { cursor: pointer; color: var(--link); padding: .35rem 0; }
pre {
  overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem 1rem;
  font-size: .85rem; line-height: 1.45; overflow-wrap: normal; user-select: all; -webkit-user-select: all;
}
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .9em; }
pre code { font-size: inherit; }

@media (max-width: 46rem) {
  main { padding: 1rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
  section { margin-top: 2.25rem; }
  th, td { padding: .45rem .6rem; }
  tbody th[scope=row] { min-width: 5.5rem; max-width: 8.5rem; }
  .text { min-width: 12rem; }
  .chart { padding: .5rem; width: auto; }
  .wide { display: none; }
  .narrow { display: block; }
  .legend.narrow { display: flex; }
  .sheet img { width: 88px; }
  .sheet thead th { max-width: 88px; }
}
@media print {
  .scroll { overflow: visible; border: 0; }
  section, figure, tr { break-inside: avoid; }
  nav { display: none; }
}
"""
