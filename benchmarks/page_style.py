"""The look of the page, light and dark; narrow screens too."""

STYLE = """
:root{--paper:#fafaf9;--card:#fff;--ink:#1c1917;--quiet:#6b645f;--line:#e7e5e4;--ours:#0f766e;--whisker:#0c0a09;
--floor:#a8a29e;--theirs:#c2790b;--track:#f0efed;--c0:#0f766e;--c1:#c2410c;--c2:#4f46e5;--c3:#a21caf;
--c4:#b45309;--c5:#0369a1;--c6:#be123c;--c7:#4d7c0f}
@media (prefers-color-scheme:dark){:root{--paper:#161412;--card:#1f1c1a;--ink:#f5f5f4;--quiet:#a8a29e;--line:#35302c;
--ours:#2dd4bf;--whisker:#f0fdfa;--floor:#78716c;--theirs:#f0a93b;--track:#2a2623;--c0:#2dd4bf;--c1:#fb923c;
--c2:#a5b4fc;--c3:#f0abfc;--c4:#fcd34d;--c5:#7dd3fc;--c6:#fda4af;--c7:#bef264}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);line-height:1.55;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:2rem;line-height:1.2;letter-spacing:-.02em;margin:0 0 1rem}
h2{font-size:1.35rem;letter-spacing:-.01em;margin:3rem 0 .75rem}
h3{font-size:1rem;margin:1.5rem 0 .5rem}
h4{font-size:.875rem;margin:0 0 .25rem}
a{color:inherit;text-decoration-color:var(--floor);text-underline-offset:.2em}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin-top:1.5rem;padding:.6rem 0;border-block:1px solid var(--line);
font-size:.9rem}
section{scroll-margin-top:1rem}
.lead{font-size:1.06rem;max-width:46rem}
.note,figcaption{color:var(--quiet);font-size:.875rem;max-width:46rem}
small{color:var(--quiet);font-weight:400}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:1rem;margin-top:1rem}
.card,.facts,.record{background:var(--card);border:1px solid var(--line);border-radius:.75rem;padding:1.1rem 1.25rem}
.card h3{margin:0;color:var(--quiet);font-weight:500}
.card p{margin:.35rem 0}
.big{font-size:2.9rem;font-weight:650;letter-spacing:-.04em;line-height:1.15;color:var(--ours)}
.big small{font-size:1.5rem;color:inherit}
figure{margin:0}
.film video{display:block;width:100%;max-width:43rem;border-radius:.75rem;border:1px solid var(--line)}
.film figcaption{margin-top:.6rem}
details{margin-top:.75rem}
summary{cursor:pointer;color:var(--quiet);font-size:.875rem}
details img{display:block;width:100%;max-width:43rem;margin-top:.75rem;border-radius:.75rem}
.row{display:grid;grid-template-columns:minmax(9rem,19rem) 1fr 9rem;gap:.9rem;align-items:center;padding:.3rem 0}
.label{line-height:1.3}.label small{display:block;font-size:.78rem}
.value{font-variant-numeric:tabular-nums;font-weight:600;white-space:nowrap}
.track{position:relative;height:.95rem;background:var(--track);border-radius:.25rem}
.track b{position:absolute;inset:0 auto 0 0;border-radius:.25rem;background:var(--ours)}
.track i{position:absolute;top:50%;height:2px;margin-top:-1px;background:var(--whisker)}
.track i::before,.track i::after{content:"";position:absolute;top:-4px;width:2px;height:10px;background:var(--whisker)}
.track i::before{left:0}.track i::after{right:0}
.track s{position:absolute;top:50%;width:9px;height:9px;margin:-4.5px 0 0 -4.5px;transform:rotate(45deg);
background:var(--paper);border:2px solid var(--whisker)}
.strict{display:block;font-size:.78rem}
.seed .label{padding-left:1.1rem;font-size:.875rem}.seed .track{height:.5rem}.seed .track b{opacity:.55}
.seed .value{font-weight:400;font-size:.875rem}
.ceiling .track b{background:repeating-linear-gradient(135deg,var(--floor) 0 3px,transparent 3px 7px)}
.floor .track b{background:var(--floor)}
.floor .track i,.floor .track i::before,.floor .track i::after{background:var(--ink)}
.theirs .track{height:.55rem}
.theirs .track b{background:transparent;border:1.5px solid var(--theirs)}
.theirs .value{font-weight:400}
.theirs-block{margin-top:1.25rem;padding:.75rem 0 0;border-top:1px dashed var(--line)}
.theirs-block .row{padding:.12rem 0}.theirs-block .label{font-size:.875rem}
.scale{color:var(--quiet);font-size:.75rem;padding-top:0}.ticks{display:grid;grid-template-columns:1fr auto 1fr}
.ticks :last-child{text-align:right}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(21rem,100%),1fr));gap:1rem}
.curve{background:var(--card);border:1px solid var(--line);border-radius:.75rem;padding:.9rem 1rem}
.curve svg{display:block;width:100%;height:auto}
.curve text{font-size:11px;fill:var(--quiet)}
.grid{stroke:var(--line)}
polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}
polyline.c0{stroke:var(--c0)}polyline.c1{stroke:var(--c1)}polyline.c2{stroke:var(--c2)}polyline.c3{stroke:var(--c3)}
polyline.c4{stroke:var(--c4)}polyline.c5{stroke:var(--c5)}polyline.c6{stroke:var(--c6)}polyline.c7{stroke:var(--c7)}
circle.c0{fill:var(--c0)}circle.c1{fill:var(--c1)}circle.c2{fill:var(--c2)}circle.c3{fill:var(--c3)}
circle.c4{fill:var(--c4)}circle.c5{fill:var(--c5)}circle.c6{fill:var(--c6)}circle.c7{fill:var(--c7)}
polyline.dashed{stroke-dasharray:5 4}
.curve figcaption{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.8rem}
.curve span::before{content:"";display:inline-block;width:1.3rem;margin-right:.4rem;vertical-align:middle;
border-top:2px solid var(--c0)}
.curve span.c1::before{border-color:var(--c1)}.curve span.c2::before{border-color:var(--c2)}
.curve span.c3::before{border-color:var(--c3)}
.curve span.c4::before{border-color:var(--c4)}
.curve span.c5::before{border-color:var(--c5)}
.curve span.c6::before{border-color:var(--c6)}
.curve span.c7::before{border-color:var(--c7)}
.curve span.grey::before{border-color:var(--quiet)}
.curve span.dashed::before{border-top-style:dashed}
.facts{margin-top:.5rem;padding:.6rem 1.25rem}.facts summary{color:var(--ink)}.facts dl{margin:.8rem 0 .4rem}
dl{scroll-margin-top:4rem}
.record{margin-top:1rem}.record h3{margin-top:0}
.wide{overflow-x:auto}
table.numbers{border-collapse:collapse;font-size:.875rem;margin:.9rem 0;min-width:60%}
.numbers th{text-align:right;font-weight:500;color:var(--quiet);padding:.35rem .8rem;
border-bottom:1px solid var(--line)}
.numbers td{text-align:right;padding:.32rem .8rem;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}
.numbers th:first-child,.numbers td:first-child{text-align:left;padding-left:0}
.numbers i{color:var(--theirs)}
.drawing{margin:1rem 0}.drawing>img{display:block;max-width:100%;border-radius:.5rem;background:#fff}
.drawing figcaption,.drawing>.note{margin-top:.4rem}
dl{display:grid;grid-template-columns:9rem 1fr;gap:.3rem 1rem;margin:0;font-size:.875rem}
dt{color:var(--quiet)}dd{margin:0;overflow-wrap:anywhere}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.82rem}
@media (max-width:40rem){.row{grid-template-columns:1fr auto;gap:.1rem .75rem}.row .track,.row .ticks{grid-row:2;
grid-column:1/-1}.scale>div:empty{display:none}dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}.big{font-size:2.6rem}}
"""
