"""The style sheet of report pages: light and dark by the reader's setting, no fonts or files from outside."""

STYLE = """
:root { color-scheme: light dark;
  --bg: #fff; --fg: #1c1f24; --soft: #667080; --line: #dfe3e8; --card: #f5f7f9;
  --c0: #0b66c2; --c1: #d1560a; --c2: #14805e; --c3: #b0357f; --c4: #8a6d00; --c5: #6b52c8;
  --ok: #14805e; --wrong: #c22f2f; }
@media (prefers-color-scheme: dark) {
  :root { --bg: #14171b; --fg: #e4e8ed; --soft: #98a2b0; --line: #333a43; --card: #1e2329;
    --c0: #62aef7; --c1: #f59a5b; --c2: #4cc79b; --c3: #ea84bf; --c4: #dcbb4c; --c5: #ab9bf5;
    --ok: #4cc79b; --wrong: #f07f7f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 30px 0 10px; }
h3, h4 { font-size: 15px; margin: 18px 0 6px; }
p, ul { margin: 6px 0; max-width: 75ch; overflow-wrap: break-word; }
ul { padding-left: 20px; }
.note, .legend, .figures span, th { color: var(--soft); }
code, pre { font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; }
p code, li code { background: var(--card); padding: 1px 4px; border-radius: 3px; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px;
  margin: 8px 0; white-space: pre-wrap; overflow-wrap: break-word; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 13px; line-height: 1.35; padding: 3px 1px 0; overflow-wrap: break-word; }
.figures { display: flex; flex-wrap: wrap; gap: 10px; margin: 14px 0; }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 8px 14px;
  min-width: 110px; }
.figures b { display: block; font-size: 22px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.figures span { font-size: 13px; }
.videos { display: grid; row-gap: 16px; align-items: start; margin: 10px 0; }
.pair { display: flex; gap: 4px; }
.one { flex: 1; min-width: 0; }
.under { display: flex; justify-content: space-between; gap: 6px; font-size: 12px; color: var(--soft); }
.save { margin-left: auto; color: inherit; cursor: pointer; text-decoration: underline; visibility: hidden; }
.scripted .save { visibility: visible; }
.player { position: sticky; bottom: 0; display: none; flex-wrap: wrap; align-items: center; justify-content: center;
  gap: 6px 10px; padding: 8px 12px; background: var(--card); border-top: 1px solid var(--line); font-size: 14px; }
.scripted .player { display: flex; }
.player button, .player select { font: inherit; min-height: 34px; min-width: 38px; color: var(--fg);
  background: var(--bg); border: 1px solid var(--line); border-radius: 6px; cursor: pointer; }
.player button:hover { border-color: var(--soft); }
.player input { flex: 1 1 160px; max-width: 420px; min-width: 110px; accent-color: var(--c0); }
.player output { min-width: 6.5ch; font-variant-numeric: tabular-nums; color: var(--soft); }
.videos video, .videos img { display: block; width: 100%; height: auto; max-height: 70vh; object-fit: contain;
  background: var(--card); border-radius: 4px; }
.small { image-rendering: pixelated; }
.badge { font-size: 11px; font-weight: 600; padding: 1px 6px; border-radius: 8px; border: 1px solid; }
.badge.ok { color: var(--ok); }
.badge.wrong { color: var(--wrong); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 20px;
  margin: 26px 0; }
.plot { max-width: 700px; }
.plot figcaption { font-size: 14px; font-weight: 600; padding: 0 0 4px; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.grid { stroke: var(--line); }
.axis { stroke: var(--soft); }
.curve { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
.dot { fill: currentColor; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; }
.key { display: inline-block; width: 14px; height: 3px; background: currentColor; vertical-align: middle;
  margin-right: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; margin: 8px 0; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
"""
