// @ts-check
/** Plots over time, with a table of the same values. No other module knows uPlot. */
import uPlot from "../vendor/uPlot.js";
import { html, useEffect, useRef, useState } from "./preact.js";
import { date, timeOfDay } from "./time.js";

const HEIGHT = 132;
const CURSOR = uPlot.sync("time");
const PAD = "\u00a0".repeat(3);

/**
 * @typedef {object} Line
 * @property {string} label
 * @property {string} color the name of a variable of the style, like `--done`
 * @property {(number | null)[]} values
 *
 * @typedef {{ atS: number, label: string }} Mark a moment, such as a deployment
 * @typedef {(value: number | null | undefined) => string} Unit a value in words
 * @typedef {{ lines: Line[], unit: Unit, marks: Mark[] }} Latest
 */

/**
 * @param {object} props
 * @param {string} props.title
 * @param {number[]} props.times of the points, in s
 * @param {Line[]} props.lines
 * @param {Unit} props.unit
 * @param {Mark[]} [props.marks]
 * @param {string} [props.note] stands beside the title
 */
export function Plot({ title, times, lines, unit, marks = [], note }) {
  const [isTable, showTable] = useState(false);
  return html`<section class="plot card" aria-label=${title}>
    <div class="head">
      <h2 class="grow">${title}${note && html` <span class="muted small">${note}</span>`}</h2>
      <button class="small plain" aria-pressed=${isTable} onClick=${() => showTable(!isTable)}>Table</button>
    </div>
    ${isTable ? html`<${Values} times=${times} lines=${lines} unit=${unit} label=${title} />` : html`<${Canvas} times=${times} lines=${lines} unit=${unit} marks=${marks} />`}
  </section>`;
}

/** @param {{ times: number[], lines: Line[], unit: Unit, marks: Mark[] }} props */
function Canvas({ times, lines, unit, marks }) {
  const place = useRef(/** @type {HTMLElement | null} */ (null));
  const legend = useRef(/** @type {HTMLElement | null} */ (null));
  const plot = useRef(/** @type {uPlot | null} */ (null));
  const latest = useRef(/** @type {Latest} */ ({ marks, lines, unit }));
  latest.current = { marks, lines, unit };
  const labels = lines.map((line) => `${line.label} ${line.color}`).join("\n");

  useEffect(() => {
    const element = /** @type {HTMLElement} */ (place.current);
    const make = () => {
      plot.current?.destroy();
      plot.current = new uPlot(options(element, latest, legend), data(times, lines), element);
    };
    const resized = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height: HEIGHT }));
    const dark = matchMedia("(prefers-color-scheme: dark)");
    make();
    resized.observe(element);
    addEventListener("theme", make);
    dark.addEventListener("change", make);
    return () => {
      plot.current?.destroy();
      plot.current = null;
      resized.disconnect();
      removeEventListener("theme", make);
      dark.removeEventListener("change", make);
    };
  }, [labels]);
  useEffect(() => plot.current?.setData(data(times, lines)), [times, lines]);

  return html`<div class="legend" ref=${legend}>
      ${lines.map((line) => html`<span><${Key} color=${line.color} /> ${line.label} <b class="figure"></b></span>`)}
      <span class="muted figure at"></span>
    </div>
    <div class="canvas" ref=${place}></div>`;
}

/** The colour of a line. @param {{ color: string }} props */
function Key({ color }) {
  const ref = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => void (ref.current && (ref.current.style.background = `var(${color})`)), [color]);
  return html`<i class="key" ref=${ref}></i>`;
}

/** For each line its closed points, and its last two, which are dashed because the last point isn't over. @param {number[]} times @param {Line[]} lines @returns {uPlot.AlignedData} */
function data(times, lines) {
  const closed = lines.map(({ values }) => values.map((value, index) => (index === values.length - 1 ? null : value)));
  const opened = lines.map(({ values }) => values.map((value, index) => (index < values.length - 2 ? null : value)));
  return [times, ...closed, ...opened];
}

/** @param {HTMLElement} element @param {{ current: Latest }} latest @param {{ current: HTMLElement | null }} legend @returns {uPlot.Options} */
function options(element, latest, legend) {
  const colors = (/** @type {string} */ name) => {
    element.style.color = `var(${name})`;
    const { color } = getComputedStyle(element);
    element.style.color = "";
    return color;
  };
  const { lines } = latest.current;
  const grid = { stroke: colors("--line"), width: 1 };
  const axis = { stroke: colors("--muted"), font: "11px system-ui, sans-serif", ticks: { show: false }, grid };
  const last = (/** @type {uPlot} */ plot) => [plot.data[0].length - 1];
  const series = (/** @type {Line} */ { color }, /** @type {number[] | undefined} */ dash = undefined) => {
    const points = dash ? { show: true, size: 4, fill: colors(color), filter: last } : { show: false };
    return { stroke: colors(color), width: 1.5, dash, points };
  };
  return {
    width: element.clientWidth,
    height: HEIGHT,
    padding: [8, 8, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: CURSOR.key, setSeries: false }, drag: { x: false, y: false }, points: { size: 5 } },
    scales: { y: { range: (_, __, max) => [0, max > 0 ? max * 1.1 : 1] } },
    axes: [
      { ...axis, size: 22, gap: 4, values: (_, at, __, ___, stepS) => at.map((each) => tick(each, stepS)) },
      { ...axis, size: (_, words) => Math.max(52, 12 + 6 * Math.max(0, ...(words ?? []).map((each) => each.length))), gap: 4, space: 28, values: (_, at) => at.map((value) => latest.current.unit(value)) },
    ],
    series: [{}, ...lines.map((line) => series(line)), ...lines.map((line) => series(line, [3, 3]))],
    hooks: {
      draw: [(plot) => drawMarks(plot, latest.current.marks, colors("--muted"))],
      setCursor: [(plot) => showValues(plot, latest.current, legend.current)],
      setData: [(plot) => showValues(plot, latest.current, legend.current)],
    },
  };
}

/** @param {number} atS @param {number} stepS */
function tick(atS, stepS) {
  if (stepS >= 86_400) return date(atS * 1000).split(",")[0];
  const time = timeOfDay(atS * 1000).slice(0, 5);
  return time === "00:00" ? date(atS * 1000).split(",")[0] : time;
}

/** A dashed line for each mark, with its label at the top. @param {uPlot} plot @param {Mark[]} marks @param {string} color */
function drawMarks({ ctx, bbox, valToPos }, marks, color) {
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = color;
  ctx.font = `${10 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
  for (const { atS, label } of marks) {
    const x = Math.round(valToPos(atS, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    const isRight = x > bbox.left + bbox.width - 70 * devicePixelRatio;
    ctx.textAlign = isRight ? "right" : "left";
    ctx.fillText(label, x + (isRight ? -4 : 4) * devicePixelRatio, bbox.top + 9 * devicePixelRatio);
  }
  ctx.restore();
}

/** Puts the values under the cursor into the legend; without a cursor, the last ones. @param {uPlot} plot @param {Latest} latest @param {HTMLElement | null} legend */
function showValues(plot, { lines, unit }, legend) {
  if (!legend) return;
  const index = plot.cursor.idx;
  const at = legend.querySelector(".at");
  for (const [number, element] of legend.querySelectorAll("b").entries()) {
    const values = lines[number]?.values ?? [];
    const value = unit(values[index ?? latestIndex(values, plot.data[0])]);
    if (element.textContent !== value) element.textContent = value;
  }
  if (at) at.textContent = index === null || index === undefined ? PAD : `${date(plot.data[0][index] * 1000)}`;
}

/** The last point with a value; the last one of all counts only when half of its time is over, because it says little before.
 * @param {(number | null)[]} values @param {uPlot.AlignedData[0]} times of the points, in s */
function latestIndex(values, times) {
  const last = times.length - 1;
  const isYoung = last > 0 && Date.now() / 1000 - times[last] < (times[last] - times[last - 1]) / 2;
  const known = isYoung && values[last - 1] !== null ? values.slice(0, last) : values;
  return known.findLastIndex((each) => each !== null);
}

/** @param {{ times: number[], lines: Line[], unit: Unit, label: string }} props */
function Values({ times, lines, unit, label }) {
  const rows = times.map((atS, index) => ({ atS, values: lines.map(({ values }) => values[index]) })).reverse();
  return html`<div class="values" tabindex="0" role="region" aria-label=${`${label}: values`}>
    <table>
      <thead><tr><th scope="col">Time</th>${lines.map((line) => html`<th scope="col">${line.label}</th>`)}</tr></thead>
      <tbody>${rows.map(({ atS, values }) => html`<tr><td>${date(atS * 1000)}</td>${values.map((value) => html`<td>${unit(value)}</td>`)}</tr>`)}</tbody>
    </table>
  </div>`;
}
