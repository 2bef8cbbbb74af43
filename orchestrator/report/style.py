"""The style sheet of `report.html`: light and dark, phone to desktop. Used by `orchestrator.report.page`."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --edge: #e2e5ea; --text: #1b2330; --soft: #5b6676; --grid: #e9ecf1; --axis: #b9c0cb;
  --c0: #1f6fb2; --c1: #c8641b; --c2: #15896b; --c3: #a8457f; --c4: #7a63c4; --c5: #b38a12; --c6: #6b7686;
  --good: #116b4f; --good-back: #dff3ea; --bad: #b3261e; --bad-back: #fbe5e3; --warn: #8a5a00; --warn-back: #fdf0d2;
  --close-band: #1f6fb21a; --healthy-band: #15896b24; --far-band: #d08c0026; --collapse-band: #c62f2626;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10141a; --card: #181e27; --edge: #2b3340; --text: #e4e9f0;
    --soft: #9aa6b6; --grid: #262e3a; --axis: #4a5667;
    --c0: #5aa9e6; --c1: #ee9350; --c2: #43c59e; --c3: #de80b5; --c4: #a795ee; --c5: #dcb84a; --c6: #94a0b1;
    --good: #62d3a7; --good-back: #143a2d; --bad: #ff8a80; --bad-back: #46201d; --warn: #f0bf5a; --warn-back: #3f3113;
    --close-band: #5aa9e61f; --healthy-band: #43c59e26; --far-band: #e0a53026; --collapse-band: #ff6b5f2b;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 1240px; padding: 28px 24px 48px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif;
}
h1 { margin: 0; font-size: 28px; line-height: 1.2; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { margin: 36px 0 12px; font-size: 18px; }
p { margin: 0 0 12px; }
.under { margin-top: 10px; }
.charts.under { margin-top: 16px; }
.brand { margin: 0 0 4px; color: var(--soft); font-size: 13px; letter-spacing: 0.04em; }
.title { display: flex; flex-wrap: wrap; align-items: center; gap: 8px 14px; }
.pill { padding: 3px 12px; border-radius: 99px; font-size: 14px; font-weight: 600; }
.done { color: var(--good); background: var(--good-back); }
.failed { color: var(--bad); background: var(--bad-back); }
.unfinished { color: var(--warn); background: var(--warn-back); }
.facts { display: flex; flex-wrap: wrap; gap: 10px 32px; margin: 18px 0 0; }
.facts dt { color: var(--soft); font-size: 13px; }
.facts dd { margin: 0; font-size: 17px; font-weight: 600; font-variant-numeric: tabular-nums; }
.trouble {
  margin: 18px 0 0; padding: 12px 16px; border-left: 4px solid var(--bad); border-radius: 6px;
  background: var(--bad-back);
}
.trouble pre { margin: 4px 0 0; padding: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.soft { color: var(--soft); font-size: 14px; }
.card {
  min-width: 0; padding: 14px 16px 12px; border: 1px solid var(--edge); border-radius: 10px; background: var(--card);
}
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; }
th { color: var(--soft); font-size: 13px; font-weight: 600; text-align: left; vertical-align: bottom; }
th, td { padding: 8px 12px; border-bottom: 1px solid var(--edge); }
tbody tr:last-child > * { border-bottom: 0; }
th.number { white-space: normal; }
tbody th { color: var(--text); font-size: 15px; vertical-align: baseline; }
td { vertical-align: baseline; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.headline td.number { font-size: 17px; }
.headline td.change { font-weight: 700; }
.error-of { margin-left: 6px; color: var(--soft); font-size: 13px; font-weight: 400; }
.unit { margin-left: 6px; color: var(--soft); font-size: 13px; font-weight: 400; }
.sure {
  padding: 1px 9px; border-radius: 99px; background: color-mix(in srgb, var(--c0) 16%, transparent);
  font-weight: 600;
}
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); gap: 16px; }
figure { margin: 0; display: flex; flex-direction: column; }
figcaption { display: flex; flex-wrap: wrap; align-items: baseline; justify-content: space-between; gap: 0 12px; }
figcaption h3 { margin: 0; font-size: 15px; }
figcaption .latest { font-weight: 600; font-variant-numeric: tabular-nums; }
.legend {
  display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 4px 0 0; padding: 0; list-style: none; font-size: 13px;
}
.legend li { white-space: nowrap; font-variant-numeric: tabular-nums; }
.legend i {
  display: inline-block; width: 14px; height: 4px; margin-right: 6px; border-radius: 2px; vertical-align: middle;
}
.legend:not(.blocks) .b1 { background: linear-gradient(90deg, var(--c1) 6px, transparent 6px 8px, var(--c1) 8px); }
.legend.blocks i { width: 11px; height: 11px; }
.about { margin: 8px 0 0; padding-top: 0; color: var(--soft); font-size: 13px; line-height: 1.4; }
svg { display: block; width: 100%; height: auto; margin-top: 8px; overflow: visible; }
svg text {
  fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; paint-order: stroke; stroke: var(--card);
  stroke-width: 0;
}
.grid { stroke: var(--grid); } .zero { stroke: var(--axis); }
.target { stroke: var(--text); stroke-dasharray: 5 4; opacity: 0.6; }
svg text.note { fill: var(--text); stroke-width: 3px; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.curve.s1 { stroke-dasharray: 6 3; }
.curve.dense { stroke-width: 1.2; stroke-dasharray: none; }
.error { stroke-width: 1.5; }
.nan { fill: var(--bad); }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); }
circle.s0 { fill: var(--c0); } circle.s1 { fill: var(--c1); } circle.s2 { fill: var(--c2); }
.close { fill: var(--close-band); } .healthy { fill: var(--healthy-band); }
.far { fill: var(--far-band); } .collapse { fill: var(--collapse-band); }
svg text.close-name { fill: var(--c0); } svg text.healthy-name { fill: var(--good); }
svg text.far-name { fill: var(--warn); } svg text.collapse-name { fill: var(--bad); }
.hit { fill: transparent; pointer-events: all; }
.over line, .over circle, .over .readout { opacity: 0; pointer-events: none; }
.over:hover line, .over:hover circle, .over:hover .readout { opacity: 1; }
.over line { stroke: var(--axis); }
svg text.readout { fill: var(--text); font-weight: 600; paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.bar:hover rect:not(.hit) { opacity: 0.75; }
.p0 { fill: var(--c0); } .p1 { fill: var(--c1); } .p2 { fill: var(--c2); } .p3 { fill: var(--c3); }
.p4 { fill: var(--c4); } .p5 { fill: var(--c5); } .p6 { fill: var(--c6); }
.b0 { background: var(--c0); } .b1 { background: var(--c1); } .b2 { background: var(--c2); }
.b3 { background: var(--c3); }
.b4 { background: var(--c4); } .b5 { background: var(--c5); } .b6 { background: var(--c6); }
.samples td { vertical-align: top; width: 36%; }
.samples td:first-child { width: 28%; }
.words { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.samples td:first-child .words { color: var(--soft); }
.scores { display: flex; flex-wrap: wrap; gap: 4px 6px; margin-bottom: 6px; }
.scores span {
  padding: 1px 8px; border: 1px solid var(--edge); border-radius: 99px; color: var(--soft); font-size: 12.5px;
  white-space: nowrap; font-variant-numeric: tabular-nums;
}
.scores .cut { border-color: transparent; color: var(--warn); background: var(--warn-back); }
details { margin-top: 16px; }
summary { cursor: pointer; font-weight: 600; }
summary:focus-visible, .scroll:focus-visible {
  outline: 2px solid var(--c0); outline-offset: 3px; border-radius: 4px;
}
details > .scroll, details > p { margin-top: 12px; }
pre, code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { margin: 0; overflow-x: auto; }
.all td, .all tbody th { padding: 5px 12px; font-size: 14px; font-weight: 400; }
footer { margin-top: 36px; color: var(--soft); font-size: 13px; }
@media (max-width: 700px) {
  body { padding: 18px 14px 32px; }
  h1 { font-size: 23px; }
  .facts { gap: 10px 22px; }
  th, td { padding: 7px 6px; }
  .headline td.number { font-size: 15px; }
  .headline .error-of, .headline tbody .unit { display: block; margin: 0; }
  .samples thead { display: none; }
  .samples tr { display: block; padding: 8px 0; border-bottom: 1px solid var(--edge); }
  .samples tr:last-child { border-bottom: 0; }
  .samples td, .samples td:first-child { display: block; width: auto; padding: 5px 0; border: 0; }
  .samples td::before {
    content: attr(data-label); display: block; margin-bottom: 3px; font-size: 13px; font-weight: 600;
  }
  .all .about-it { display: none; }
}
@media (max-width: 430px) {
  svg text { font-size: 13.5px; }
  .card { padding: 12px 12px 10px; }
  .headline th, .headline td, .headline td.number { padding: 6px 3px; font-size: 13.5px; }
  .headline th { font-size: 12px; }
  .headline .error-of, .headline .unit { font-size: 12px; }
  .headline .sure { padding: 1px 6px; }
}
@media print { body { max-width: none; background: none; } .card { break-inside: avoid; } }
"""
