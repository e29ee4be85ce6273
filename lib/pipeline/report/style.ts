/** The page's style sheet. Colours of sensors and stages are told apart by the colour-blind too (after Okabe and Ito). */

/** Marks the text as CSS for editors and formatters. */
const css = String.raw;

export const STYLE: string = css`
  :root {
    color-scheme: light dark;
    --ground: #f4f5f7;
    --card: #ffffff;
    --ink: #1a1f26;
    --muted: #59636f;
    --line: #e1e5ea;
    --soft: #eef1f4;
    --accent: #0b5cad;
    --chosen: #e3effb;
    --lidar: #0072b2;
    --camera: #e69f00;
    --failed: #b0123f;
    --failed-soft: #fbeaef;
    --stage-0: #0072b2;
    --stage-1: #e69f00;
    --stage-2: #009e73;
    --stage-3: #cc79a7;
    --stage-4: #56b4e9;
    --stage-5: #d55e00;
    --stage-6: #8c7ae6;
    --stage-7: #8a8f98;
  }
  @media (prefers-color-scheme: dark) {
    :root {
      --ground: #0f1216;
      --card: #181c22;
      --ink: #e6e9ed;
      --muted: #9ba6b3;
      --line: #2b323b;
      --soft: #212730;
      --accent: #6db3f2;
      --chosen: #1d3450;
      --lidar: #3a93d0;
      --camera: #d99a1c;
      --failed: #ff7d97;
      --failed-soft: #3a1a24;
      --stage-0: #3a93d0;
      --stage-1: #d99a1c;
      --stage-2: #1fae86;
      --stage-5: #e0703a;
    }
  }
  * {
    box-sizing: border-box;
  }
  html {
    -webkit-text-size-adjust: 100%;
  }
  body {
    margin: 0;
    background: var(--ground);
    color: var(--ink);
    font:
      14px/20px system-ui,
      -apple-system,
      'Segoe UI',
      Roboto,
      'Helvetica Neue',
      'Liberation Sans',
      'DejaVu Sans',
      sans-serif;
    font-variant-numeric: tabular-nums;
  }
  #app {
    max-width: 1680px;
    margin: 0 auto;
    padding: 20px 20px 48px;
  }
  h1,
  h2,
  h3,
  p,
  dl,
  dd,
  ul,
  fieldset {
    margin: 0;
    padding: 0;
  }
  h1 {
    font-size: 22px;
    line-height: 28px;
    letter-spacing: -0.01em;
    overflow-wrap: anywhere;
  }
  h2 {
    font-size: 15px;
    line-height: 20px;
  }
  h3 {
    font-size: 13px;
    line-height: 20px;
    color: var(--muted);
    font-weight: 600;
  }
  code {
    font:
      12px/18px ui-monospace,
      'SF Mono',
      Menlo,
      Consolas,
      'Liberation Mono',
      'DejaVu Sans Mono',
      monospace;
  }
  [hidden] {
    display: none !important;
  }
  :focus-visible {
    outline: 2px solid var(--accent);
    outline-offset: 2px;
  }
  button,
  input,
  select {
    font: inherit;
    color: inherit;
  }
  button {
    cursor: pointer;
    border: 1px solid var(--line);
    border-radius: 7px;
    background: var(--card);
    padding: 5px 12px;
    line-height: 20px;
  }
  button:hover:enabled {
    border-color: var(--muted);
  }
  button:disabled {
    color: var(--muted);
    opacity: 0.6;
    cursor: default;
  }
  input[type='search'],
  input[type='number'],
  select {
    border: 1px solid var(--line);
    border-radius: 7px;
    background: var(--ground);
    padding: 5px 9px;
    line-height: 20px;
    height: 32px;
  }

  .top {
    display: flex;
    flex-wrap: wrap;
    gap: 8px 24px;
    justify-content: space-between;
    align-items: start;
    margin-bottom: 16px;
  }
  .top p {
    color: var(--muted);
  }
  .top details {
    max-width: 100%;
  }
  .top details[open] {
    flex: 1 0 100%;
    order: 2;
    background: var(--card);
    border: 1px solid var(--line);
    border-radius: 10px;
    padding: 12px 16px;
  }
  .top summary {
    cursor: pointer;
    color: var(--accent);
    line-height: 28px;
  }
  .top .facts {
    columns: 320px;
    column-gap: 32px;
  }
  .note {
    flex: 1 0 100%;
    order: 3;
    border-left: 3px solid var(--camera);
    padding: 2px 12px;
  }
  .facts div {
    display: flex;
    gap: 16px;
    justify-content: space-between;
    border-top: 1px solid var(--line);
    padding: 5px 0;
    break-inside: avoid;
  }
  .facts dt {
    color: var(--muted);
    flex: none;
  }
  .facts dd {
    text-align: right;
    overflow-wrap: anywhere;
    min-width: 0;
  }

  .tiles {
    display: grid;
    grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
    gap: 12px;
    margin-bottom: 12px;
  }
  .tile,
  .card {
    background: var(--card);
    border: 1px solid var(--line);
    border-radius: 10px;
    min-width: 0;
  }
  .tile {
    padding: 10px 14px 11px;
    border-top: 3px solid var(--line);
  }
  .tile.lidar {
    border-top-color: var(--lidar);
  }
  .tile.camera {
    border-top-color: var(--camera);
  }
  .tile.bad {
    border-top-color: var(--failed);
  }
  .tile dt {
    color: var(--muted);
    font-size: 13px;
    white-space: nowrap;
  }
  .tile dd {
    font-size: 22px;
    line-height: 28px;
    font-weight: 600;
    letter-spacing: -0.01em;
    white-space: nowrap;
    overflow: hidden;
    text-overflow: ellipsis;
  }
  .tile small {
    display: block;
    font-size: 12px;
    line-height: 16px;
    min-height: 16px;
    font-weight: 400;
    letter-spacing: 0;
    color: var(--muted);
    overflow: hidden;
    text-overflow: ellipsis;
  }

  .columns {
    display: grid;
    grid-template-columns: minmax(0, 1fr) 372px;
    gap: 12px;
    align-items: start;
  }
  main {
    display: grid;
    gap: 12px;
    min-width: 0;
  }
  .charts {
    display: grid;
    grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr));
    gap: 12px;
    align-items: start;
  }
  .charts .card {
    height: 100%;
  }
  .card {
    padding: 14px 16px 12px;
  }
  .card > header {
    display: flex;
    flex-wrap: wrap;
    gap: 4px 16px;
    justify-content: space-between;
    align-items: center;
  }
  .about {
    color: var(--muted);
    font-size: 12.5px;
    line-height: 18px;
    margin: 2px 0 8px;
  }
  .legend {
    display: flex;
    gap: 14px;
    list-style: none;
    font-size: 13px;
    color: var(--muted);
  }
  .mark {
    display: inline-block;
    width: 10px;
    height: 10px;
    border-radius: 2px;
    margin-right: 6px;
    background: transparent;
  }
  .mark.lidar,
  .fill.lidar {
    background: var(--lidar);
  }
  .mark.camera,
  .fill.camera {
    background: var(--camera);
  }
  .mark.failed {
    width: 2px;
    margin: 0 9px 0 3px;
    border-radius: 0;
    background: var(--failed);
  }

  .plot svg {
    display: block;
    overflow: visible;
  }
  .plot.clickable {
    cursor: crosshair;
  }
  .slider {
    border-radius: 4px;
  }
  svg text {
    fill: var(--muted);
    font-size: 12px;
  }
  svg .axis-name,
  svg .panel-name {
    font-size: 12px;
  }
  svg .panel-name,
  svg .stage-name {
    fill: var(--ink);
  }
  svg .stage-numbers {
    fill: var(--ink);
  }
  svg .counts text {
    font-size: 11px;
  }
  svg .axis line {
    stroke: var(--muted);
    stroke-opacity: 0.28;
  }
  svg .axis .base {
    stroke-opacity: 0.7;
  }
  svg .area.lidar {
    fill: var(--lidar);
    fill-opacity: 0.92;
  }
  svg .area.camera {
    fill: var(--camera);
    fill-opacity: 0.82;
  }
  svg .span {
    fill: none;
    stroke: var(--ink);
    stroke-opacity: 0.55;
  }
  svg .rug {
    stroke: var(--failed);
    stroke-width: 1.5;
  }
  svg .marker {
    pointer-events: none;
  }
  svg .marker line,
  svg .marker path {
    fill: none;
    stroke: var(--ink);
    stroke-width: 1.5;
  }
  svg .marker circle {
    fill: var(--card);
    stroke: var(--ink);
    stroke-width: 2;
  }
  svg .whisker {
    stroke: var(--muted);
    stroke-width: 1;
  }
  svg .median {
    stroke: var(--ink);
    stroke-width: 2;
  }
  svg .most {
    fill: var(--muted);
  }
  .stage-0 {
    fill: var(--stage-0);
    background: var(--stage-0);
  }
  .stage-1 {
    fill: var(--stage-1);
    background: var(--stage-1);
  }
  .stage-2 {
    fill: var(--stage-2);
    background: var(--stage-2);
  }
  .stage-3 {
    fill: var(--stage-3);
    background: var(--stage-3);
  }
  .stage-4 {
    fill: var(--stage-4);
    background: var(--stage-4);
  }
  .stage-5 {
    fill: var(--stage-5);
    background: var(--stage-5);
  }
  .stage-6 {
    fill: var(--stage-6);
    background: var(--stage-6);
  }
  .stage-7 {
    fill: var(--stage-7);
    background: var(--stage-7);
  }

  .tip {
    position: fixed;
    z-index: 30;
    max-width: min(320px, 90vw);
    background: var(--card);
    border: 1px solid var(--line);
    border-radius: 8px;
    box-shadow: 0 4px 16px rgb(0 0 0 / 0.18);
    padding: 7px 11px;
    pointer-events: none;
    font-size: 13px;
  }
  .tip-title {
    display: block;
    font-weight: 600;
    overflow-wrap: anywhere;
  }
  .tip div {
    display: flex;
    align-items: center;
    white-space: nowrap;
  }
  .tip div b {
    margin-left: auto;
    padding-left: 16px;
    font-weight: 500;
  }
  .tip .mark:not(.lidar, .camera) {
    display: none;
  }

  .scroll {
    overflow-x: auto;
    margin-top: 6px;
  }
  table {
    border-collapse: collapse;
  }
  th {
    font-weight: 600;
    text-align: left;
  }
  .number {
    text-align: right;
  }
  .failures {
    width: 100%;
  }
  .failures th,
  .failures td {
    padding: 6px 10px 6px 0;
    border-top: 1px solid var(--line);
    vertical-align: top;
  }
  .failures thead th {
    border: 0;
    color: var(--muted);
    font-size: 12.5px;
  }
  .failures th:first-child,
  .failures td:first-child {
    text-align: right;
    padding-right: 16px;
    width: 1%;
  }
  .failures .message {
    width: 80%;
    min-width: 220px;
    overflow-wrap: anywhere;
  }
  .failures td:last-child {
    padding-right: 0;
  }
  .failures button {
    padding: 1px 10px;
  }
  .failures code,
  .failure code,
  td .failed {
    color: var(--failed);
  }

  .filters {
    display: flex;
    flex-wrap: wrap;
    gap: 8px 18px;
    align-items: center;
    margin: 10px 0;
  }
  .filters label,
  .filters fieldset {
    display: flex;
    align-items: center;
    gap: 8px;
    border: 0;
    min-width: 0;
  }
  .filters legend {
    float: left;
    padding: 0;
    margin-right: 8px;
  }
  .filters legend + * {
    clear: none;
  }
  .filters .grow {
    flex: 1 1 220px;
  }
  .filters .grow input {
    flex: 1;
    min-width: 0;
  }
  .filters input[type='number'] {
    width: 68px;
  }
  .filters input[type='checkbox'] {
    width: 16px;
    height: 16px;
    margin: 0;
    accent-color: var(--accent);
  }
  .shown {
    color: var(--muted);
    font-weight: 400;
    margin-left: 8px;
    white-space: nowrap;
  }
  .chip {
    display: inline-flex;
    align-items: center;
    gap: 4px;
    background: var(--failed-soft);
    color: var(--failed);
    border-radius: 7px;
    padding: 0 2px 0 10px;
    min-height: 32px;
  }
  .chip button {
    border: 0;
    background: none;
    padding: 4px 8px;
  }
  .choice {
    display: flex;
  }
  .choice button {
    padding: 3px 12px;
    border-radius: 0;
  }
  .choice button:first-child {
    border-radius: 7px 0 0 7px;
  }
  .choice button:last-child {
    border-radius: 0 7px 7px 0;
    margin-left: -1px;
  }
  .choice button[aria-pressed='true'] {
    background: var(--chosen);
    border-color: var(--accent);
    position: relative;
  }

  .table,
  .gallery {
    min-height: 204px;
    max-height: min(70vh, 620px);
    overflow: auto;
    border: 1px solid var(--line);
    border-radius: 8px;
    overscroll-behavior: contain;
  }
  .rows {
    table-layout: fixed;
    border-collapse: separate;
    border-spacing: 0;
  }
  .rows:focus-visible {
    outline-offset: -2px;
  }
  .rows th {
    position: sticky;
    top: 0;
    z-index: 2;
    height: 34px;
    padding: 0;
    background: var(--soft);
    border-bottom: 1px solid var(--line);
  }
  .rows th button {
    display: block;
    width: 100%;
    height: 33px;
    border: 0;
    border-radius: 0;
    background: none;
    padding: 0 10px;
    text-align: inherit;
    font-weight: 600;
    font-size: 13px;
    white-space: nowrap;
    overflow: hidden;
    text-overflow: ellipsis;
  }
  .rows th button:focus-visible {
    outline-offset: -2px;
  }
  .rows th[aria-sort] button {
    color: var(--accent);
  }
  .rows th[aria-sort='ascending'] button::after {
    content: ' ↑';
  }
  .rows th[aria-sort='descending'] button::after {
    content: ' ↓';
  }
  .rows td {
    height: 34px;
    padding: 0 10px;
    border-bottom: 1px solid var(--line);
    background: var(--card);
    white-space: nowrap;
    overflow: hidden;
    text-overflow: ellipsis;
  }
  .rows .filler td {
    padding: 0;
    border: 0;
  }
  .rows tbody tr {
    cursor: pointer;
  }
  .rows tbody tr:hover td {
    background-color: var(--soft);
  }
  .rows tr[aria-selected='true'] td,
  .rows tr[aria-selected='true']:hover td {
    background-color: var(--chosen);
  }
  .rows td.none {
    text-align: center;
    color: var(--muted);
    height: 120px;
  }
  .rows th.key,
  .rows td.key {
    position: sticky;
    left: 0;
    z-index: 1;
    font-weight: 500;
    box-shadow: 1px 0 0 var(--line);
  }
  .rows th.key {
    z-index: 3;
  }
  .rows td.bar {
    background-image: linear-gradient(var(--bar), var(--bar));
    background-repeat: no-repeat;
    background-position: 10px 28px;
    background-size: calc((100% - 20px) * var(--fraction)) 3px;
  }
  .rows td.bar.lidar {
    --bar: var(--lidar);
  }
  .rows td.bar.camera {
    --bar: var(--camera);
  }

  .gallery {
    padding: 10px;
  }
  .sheet {
    position: relative;
  }
  .frame-card {
    position: absolute;
    left: 0;
    top: 0;
  }
  .card-button {
    display: flex;
    flex-direction: column;
    width: 100%;
    height: 100%;
    padding: 0;
    overflow: hidden;
    text-align: left;
  }
  .frame-card.selected .card-button {
    border-color: var(--accent);
    box-shadow: 0 0 0 1px var(--accent);
  }
  .caption {
    display: block;
    padding: 3px 8px 0;
    font-size: 12px;
    line-height: 17px;
  }
  .caption > * {
    display: block;
    white-space: nowrap;
    overflow: hidden;
    text-overflow: ellipsis;
  }
  .caption > :last-child {
    color: var(--muted);
  }
  .caption > .failed {
    color: var(--failed);
  }
  .share {
    display: block;
    width: 100%;
    height: 4px;
    margin-top: auto;
    background: linear-gradient(to right, var(--lidar) var(--share), var(--camera) var(--share));
  }

  .picture {
    position: relative;
    display: flex;
    align-items: center;
    justify-content: center;
    width: 100%;
    overflow: hidden;
    background: #0c0c0c;
    color: #a0a6ad;
    font-size: 12px;
  }
  .picture.bev {
    aspect-ratio: 1;
  }
  .picture.cameras {
    aspect-ratio: 15 / 4;
  }
  .picture.cameras.there {
    aspect-ratio: auto;
    background: none;
  }
  .views {
    display: grid;
    grid-template-columns: repeat(3, minmax(0, 1fr));
    gap: 4px;
    width: 100%;
  }
  .view {
    position: relative;
    display: block;
  }
  .view canvas {
    display: block;
    width: 100%;
    border-radius: 4px;
  }
  .view bdi {
    display: block;
    color: var(--muted);
    font-size: 11px;
    line-height: 16px;
    text-align: left;
    white-space: nowrap;
    overflow: hidden;
    text-overflow: ellipsis;
  }
  .picture.none {
    background: var(--soft);
    color: var(--muted);
  }
  .picture img {
    display: block;
    width: 100%;
    height: 100%;
    object-fit: contain;
  }
  .card-button .picture {
    flex: none;
  }

  .detail {
    position: sticky;
    top: 12px;
    max-height: calc(100vh - 24px);
    display: flex;
    flex-direction: column;
    padding-bottom: 0;
  }
  .detail > header {
    flex-wrap: nowrap;
    padding-bottom: 10px;
  }
  .detail h2 {
    min-width: 0;
    white-space: nowrap;
    overflow: hidden;
    text-overflow: ellipsis;
  }
  .detail .buttons {
    display: flex;
    gap: 6px;
    flex: none;
  }
  .detail .buttons button {
    padding: 1px 11px;
    font-size: 16px;
  }
  .detail .close {
    display: none;
  }
  .detail-body {
    overflow-y: auto;
    overscroll-behavior: contain;
    margin: 0 -16px;
    padding: 0 16px 14px;
  }
  .openable {
    display: block;
    width: 100%;
    padding: 0;
    border: 0;
    background: none;
    cursor: zoom-in;
  }
  .openable .picture {
    border-radius: 6px;
    margin-bottom: 8px;
  }
  .lightbox {
    width: fit-content;
    max-width: 96vw;
    max-height: 96vh;
    padding: 0;
    border: 1px solid var(--line);
    border-radius: 10px;
    background: var(--card);
    color: var(--ink);
    overflow: hidden;
  }
  .lightbox::backdrop {
    background: rgb(0 0 0 / 0.72);
  }
  .lightbox .picture.bev {
    width: min(94vw, 88vh);
  }
  .lightbox .picture.cameras {
    width: min(94vw, 1500px);
  }
  .lightbox .view bdi {
    padding-inline: 8px;
  }
  .lightbox p {
    display: flex;
    flex-wrap: wrap;
    gap: 4px 16px;
    align-items: center;
    padding: 8px 12px;
  }
  .lightbox button {
    margin-left: auto;
  }
  .detail .bars {
    margin: 12px 0;
  }
  .bars dl div {
    display: grid;
    grid-template-columns: 124px minmax(0, 1fr);
    gap: 8px;
    align-items: center;
  }
  .bars dt {
    white-space: nowrap;
    overflow: hidden;
    text-overflow: ellipsis;
    font-size: 13px;
  }
  .bars dd {
    display: flex;
    align-items: center;
    gap: 8px;
  }
  .track {
    flex: 1;
    height: 8px;
    border-radius: 2px;
    overflow: hidden;
    background: var(--soft);
  }
  .fill {
    display: block;
    height: 100%;
  }
  .bars b {
    width: 62px;
    font-weight: 500;
    text-align: right;
    font-size: 13px;
    white-space: nowrap;
  }
  .failure {
    background: var(--failed-soft);
    border-radius: 8px;
    padding: 10px 12px;
    margin-bottom: 12px;
    overflow-wrap: anywhere;
  }

  @media (max-width: 1180px) {
    .columns {
      grid-template-columns: minmax(0, 1fr);
    }
    .detail {
      display: none;
      position: fixed;
      inset: auto 0 0 0;
      z-index: 20;
      max-height: 74vh;
      border-radius: 14px 14px 0 0;
      box-shadow: 0 -6px 28px rgb(0 0 0 / 0.28);
    }
    .detail.open {
      display: flex;
    }
    .detail .close {
      display: block;
    }
    .detail .picture.bev {
      max-width: 420px;
      margin-inline: auto;
    }
  }
  @media (max-width: 560px) {
    #app {
      padding: 14px 10px 40px;
    }
    .card {
      padding: 12px 12px 10px;
    }
    .detail-body {
      margin: 0 -12px;
      padding: 0 12px 12px;
    }
    .detail .picture.bev {
      max-width: 300px;
    }
    .tiles {
      grid-template-columns: 1fr 1fr;
      gap: 8px;
    }
    .filters {
      gap: 10px 14px;
    }
    .filters fieldset {
      flex-wrap: wrap;
    }
    .filters legend {
      display: none;
    }
    .rows .index {
      display: none;
    }
    .rows col.key {
      width: 116px !important;
    }
    .failures thead {
      display: none;
    }
    .failures tr {
      display: flex;
      flex-wrap: wrap;
      gap: 2px 12px;
      align-items: baseline;
      border-top: 1px solid var(--line);
      padding: 8px 0;
    }
    .failures tbody tr td {
      border: 0;
      padding: 0;
      width: auto;
    }
    .failures td:first-child {
      font-weight: 600;
    }
    .failures td:first-child::after {
      content: ' ×';
    }
    .failures tbody tr .message {
      order: 2;
      width: 100%;
    }
    .failures td:last-child {
      margin-left: auto;
    }
  }
  @media (pointer: coarse) {
    .detail .buttons button {
      padding: 6px 14px;
    }
  }
  @media (prefers-reduced-motion: no-preference) {
    html {
      scroll-behavior: smooth;
    }
  }
  @media print {
    .detail,
    .filters {
      display: none;
    }
    .table {
      height: auto;
    }
  }
`;
