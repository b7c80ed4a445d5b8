"""The style sheet of the page: for light and dark, wide and narrow, and for paper."""

STYLE = """
:root { color-scheme: light dark; --text: #1c2128; --faint: #59636e; --page: #ffffff; --card: #f4f6f8; --line: #d1d9e0;
  --bar: #2f6fb3; --beyond: #c4442b; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --faint: #9aa4ae; --page: #12161c; --card: #1b2129; --line: #343c46;
  --bar: #6cb0f5; --beyond: #ff8f70; --good: #4ac26b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 78rem; color: var(--text); background: var(--page);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p { max-width: 62rem; } .faint { color: var(--faint); }
.verdict { border-left: 4px solid var(--good); background: var(--card); padding: .75rem 1rem; border-radius: 4px; }
.verdict.missed { border-color: var(--beyond); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: break-word; max-width: 30rem; }
th { color: var(--faint); font-weight: 600; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .75rem; background: var(--card); border-radius: 6px; break-inside: avoid; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; } figcaption b { font-weight: 600; }
svg { display: block; width: 100%; height: auto; margin-top: .5rem; }
svg text { fill: var(--faint); font-size: 12px; }
.bar, .key-bar { fill: var(--bar); background: var(--bar); }
.beyond, .key-beyond { fill: var(--beyond); background: var(--beyond); }
.axis { stroke: var(--line); } .grid { stroke: var(--faint); stroke-width: 1.5; fill: none; }
.chart { margin: 0 0 1rem; } .chart svg { min-width: 40rem; }
.arena { fill: none; stroke: var(--line); } .buffer { stroke: var(--page); stroke-width: .5; fill-opacity: .8; }
.tone0 { fill: var(--bar); } .tone1 { fill: var(--good); } .tone2 { fill: var(--faint); }
.limit { stroke: var(--beyond); stroke-width: 1.5; stroke-dasharray: 6 3; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 .9em; }
a { color: var(--bar); }
"""
