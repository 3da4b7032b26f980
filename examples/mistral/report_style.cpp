// SPDX-License-Identifier: Apache-2.0
#include "report_parts.hpp"

namespace nibble::mistral::page {

// Blue and orange stay apart for every kind of colour vision (Okabe and Ito, 2008, darkened for text contrast).
const char* const style = R"css(
:root{color-scheme:light dark;--paper:#fdfdfc;--ink:#1c2024;--soft:#5b636b;--rule:#dfe2e5;--grid:#eceef0;--panel:#fff;
--a:#0b62a8;--b:#b85410;--n:#9aa3ab;--fill:#c9d0d6;
--d0:#b9d3e8;--d1:#98bfde;--d2:#76a9d2;--d3:#5593c4;--d4:#377db4;--d5:#1f679f;--d6:#115086;--d7:#083a69}
@media (prefers-color-scheme:dark){:root{--paper:#14171a;--ink:#e7eaed;--soft:#a0a8b0;--rule:#32383e;--grid:#262b30;
--panel:#191d21;--a:#6db3f2;--b:#f0a060;--n:#77818a;--fill:#3d454d;
--d0:#2c4a66;--d1:#365c80;--d2:#41709b;--d3:#4f85b5;--d4:#639bcb;--d5:#7eb2dd;--d6:#9fc9ec;--d7:#c7e0f7}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 -apple-system,"Segoe UI",Roboto,Inter,
"Noto Sans","Helvetica Neue","Liberation Sans",Arial,system-ui,sans-serif;overflow-wrap:anywhere}
main{max-width:1184px;margin:0 auto;padding:40px 16px 64px}
h1{font-size:30px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em;font-weight:650}
h3{font-size:16px;margin:18px 0 4px}
h2{font-size:20px;line-height:1.3;margin:0 0 6px;font-weight:650}
p{margin:0 0 12px;max-width:72ch}
.by{color:var(--soft);margin-bottom:18px}
.finding{font-size:18px}
section{margin-top:36px;padding-top:20px;border-top:1px solid var(--rule)}
.lead,.none,figcaption span,.legend,.fine{color:var(--soft)}
.lead,.legend,.none{font-size:14.5px}
.fine{font-size:13.5px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,260px),1fr));gap:14px 16px;margin-top:12px}
.two{display:flex;flex-wrap:wrap;gap:16px 48px;align-items:flex-start}
.two>figure{flex:1 1 300px;max-width:400px}
figure{margin:0;min-width:0}
figcaption{font-size:14px;line-height:1.35;display:flex;justify-content:space-between;gap:2px 10px;flex-wrap:wrap}
figcaption b{font-weight:600}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:10.5px;fill:var(--soft);font-variant-numeric:tabular-nums}
svg .x{text-anchor:middle}
svg .y{text-anchor:end}
svg .name{fill:var(--ink);font-size:11.5px}
.grid-line,path.grid{stroke:var(--grid);fill:none}
path.axis{stroke:var(--soft);fill:none;stroke-width:.8}
path.zero{stroke:var(--soft);stroke-width:.8;stroke-dasharray:2 3;fill:none}
.a{stroke:var(--a);fill:var(--a)}
.b{stroke:var(--b);fill:var(--b)}
.n{stroke:var(--n);fill:var(--n)}
polyline{fill:none!important;stroke-width:1.5;stroke-linejoin:round}
polyline.b{stroke-dasharray:4 2.5}
circle{stroke-width:1.4}
circle.hollow{fill:var(--panel)}
path.a,path.b,path.n{fill:none;stroke-width:1.6}
path.before{fill:var(--fill);stroke:none}
path.after{fill:none;stroke:var(--a);stroke-width:1.3}
.box .stem{stroke:var(--a);stroke-width:1;fill:none}
.box .body{stroke:var(--a);fill:var(--panel);stroke-width:1}
.box .median{stroke:var(--a);stroke-width:2.2;fill:none}
.d0{stroke:var(--d0)}.d1{stroke:var(--d1)}.d2{stroke:var(--d2)}.d3{stroke:var(--d3)}
.d4{stroke:var(--d4)}.d5{stroke:var(--d5)}.d6{stroke:var(--d6)}.d7{stroke:var(--d7)}
.legend{margin:8px 0 0;display:flex;flex-wrap:wrap;gap:2px 18px}
.legend svg{display:inline-block;width:14px;height:12px;margin-right:6px;vertical-align:-1px}
.ramp{display:inline-block;width:72px;height:9px;margin:0 7px;border-radius:2px;
background:linear-gradient(90deg,var(--d0),var(--d2),var(--d4),var(--d7))}
.scroll{overflow-x:auto;margin:12px 0}
table{border-collapse:collapse;overflow-wrap:normal;font-size:14.5px;font-variant-numeric:tabular-nums}
th,td{padding:5px 14px 5px 0;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule);font-weight:400}
th:first-child,td:first-child,th.left,td.left{text-align:left}
thead th{color:var(--soft);font-size:13px;vertical-align:bottom}
data{white-space:nowrap}
caption{text-align:left;color:var(--soft);font-size:13.5px;padding-bottom:4px}
details{margin-top:12px}
summary{cursor:pointer;color:var(--a)}
dl{display:grid;grid-template-columns:minmax(9em,max-content) 1fr;gap:5px 20px;margin:10px 0;font-size:14.5px}
dt{color:var(--soft)}
dd{margin:0;font-variant-numeric:tabular-nums}
code{font:13px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace}
@media (max-width:560px){main{padding-top:24px}h1{font-size:25px}.finding{font-size:17px}
th,td{padding-right:10px}.compare td,thead th{white-space:normal}
dl:not(.options){grid-template-columns:1fr;gap:0}dl:not(.options) dd{margin-bottom:8px}}
@media print{section{break-inside:avoid}}
)css";

}  // namespace nibble::mistral::page
