// @ts-check
/** The timeline of a task: one lane, the lines of its log below it on the same axis, and all of it as a table. */
import { html, useEffect, useRef, useState } from "../../parts/preact.js";
import { Status } from "../../parts/status.js";
import { Text } from "../../parts/text.js";
import { date, duration, wholeTime } from "../../parts/time.js";
import { ticks } from "./timeline.js";

const BINS = 200;
const LABEL_PX = 110;
const DIGIT_PX = 8;
/** How wide a span is at least: in forced colours it has borders of 2 px. */
const LEAST_PX = 4;

/**
 * @param {{ timeline: import("./timeline.js").Timeline, lineTimes: number[], onPick: (at: number) => void,
 *   seenAt: number | null }} props `lineTimes`: when the lines of the log were written. `onPick`: a time was picked.
 *   `seenAt`: the time of the first line of the log that is on screen
 */
export function TimeAxis({ timeline, lineTimes, onPick, seenAt }) {
  const [zoom, setZoom] = useState(/** @type {[number, number] | null} */ (null));
  const [from, to] = zoom ?? [timeline.from, timeline.to];
  const length = Math.max(to - from, 1);
  const share = (/** @type {number} */ at) => (100 * (Math.min(Math.max(at, from), to) - from)) / length;
  const [width, setWidth] = useState(600);
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => {
    const element = /** @type {HTMLElement} */ (box.current);
    const observer = new ResizeObserver(() => setWidth(element.clientWidth));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  const spans = timeline.spans.filter((span) => span.to >= from && span.from <= to);
  const numberIn = (/** @type {import("./timeline.js").Span} */ span) => {
    const number = span.kind === "attempt" ? String(span.attempt) : "";
    const room = ((share(span.to) - share(span.from)) * width) / 100 - LEAST_PX;
    return room >= number.length * DIGIT_PX ? number : "";
  };
  const pick = (/** @type {import("./timeline.js").Span} */ span) => {
    const margin = Math.max(span.to - span.from, 1) / 10;
    setZoom([span.from - margin, span.to + margin]);
    if (span.kind === "attempt") onPick(span.from);
  };
  return html`<div class="timeline" ref=${box}>
    <div class="timeline-lane">
      ${spans.map(
        (span) => html`<button type="button" key=${`${span.kind}${span.from}`}
          class=${`span span-${span.kind} ${span.kind === "attempt" ? `is-${outcomeClass(span)}` : ""} ${span.isOpen ? "is-open" : ""}`}
          style=${{
            left: `min(${share(span.from)}%, 100% - ${LEAST_PX}px)`,
            width: `${share(span.to) - share(span.from)}%`,
            minWidth: `${LEAST_PX}px`,
          }}
          title=${`${span.label}${span.outcome ? `: ${span.outcome}` : ""} · ${duration(span.to - span.from)}`}
          aria-label=${`${span.label}, ${duration(span.to - span.from)}: zoom in`}
          onClick=${() => pick(span)}>
          <span class="span-label">${numberIn(span)}</span>
        </button>`,
      )}
      ${timeline.marks
        .filter((mark) => mark.at >= from && mark.at <= to)
        .map((mark) => html`<span class="mark" key=${`${mark.label}${mark.at}`} style=${{ left: `${share(mark.at)}%` }} title=${`${mark.label} · ${wholeTime(mark.at)}`}></span>`)}
    </div>
    ${lineTimes.length > 0 && html`<${LineStrip} times=${lineTimes} from=${from} length=${length} onPick=${onPick} />`}
    <div class="timeline-axis" aria-hidden="true">
      ${seenAt !== null && seenAt >= from && seenAt <= to && html`<span class="seen" style=${{ left: `${share(seenAt)}%` }}></span>`}
      ${ticks(length, Math.max(2, Math.floor(width / LABEL_PX))).filter((at) => ((length - at) / length) * width > LABEL_PX / 2).map((at) => html`<span class="tick" key=${at} style=${{ left: `${(100 * at) / length}%` }}>${at ? `+${duration(at)}` : date(from)}</span>`)}
    </div>
    <div class="timeline-foot">
      ${zoom && html`<button type="button" class="small" onClick=${() => setZoom(null)}>Whole life, ${duration(timeline.to - timeline.from)}</button>`}
      <details>
        <summary>${timeline.spans.length === 1 ? "1 step" : `${timeline.spans.length} steps`} as a table</summary>
        <${SpanTable} timeline=${timeline} />
      </details>
    </div>
  </div>`;
}

/** @param {import("./timeline.js").Span} span */
function outcomeClass({ outcome = "" }) {
  if (outcome === "crashed" || outcome === "lease_lost") return "failed";
  return ["done", "failed", "stopped", "in_progress", "stopping"].includes(outcome) ? outcome : "other";
}

/** How many lines were written when. @param {{ times: number[], from: number, length: number, onPick: (at: number) => void }} props */
function LineStrip({ times, from, length, onPick }) {
  const counts = new Array(BINS).fill(0);
  for (const at of times) {
    const bin = Math.floor((BINS * (at - from)) / length);
    if (bin >= 0 && bin < BINS) counts[bin]++;
    else if (at === from + length) counts[BINS - 1]++;
  }
  const most = Math.max(...counts, 1);
  const height = (/** @type {number} */ count) => (count ? 3 + (13 * count) / most : 0);
  const path = counts.map((count, bin) => (count ? `M${bin} 16h.8v-${height(count).toFixed(1)}h-.8z` : "")).join("");
  const pick = (/** @type {MouseEvent} */ event) => {
    const box = /** @type {Element} */ (event.currentTarget).getBoundingClientRect();
    onPick(from + ((event.clientX - box.left) / box.width) * length);
  };
  return html`<div class="timeline-lines" onClick=${pick} title="Lines of the log: click to see those of that time">
    <svg viewBox=${`0 0 ${BINS} 16`} preserveAspectRatio="none" aria-hidden="true"><path d=${path} /></svg>
  </div>`;
}

/** @param {{ timeline: import("./timeline.js").Timeline }} props */
function SpanTable({ timeline }) {
  return html`<div class="scroll"><table>
    <thead><tr><th scope="col">Step</th><th scope="col">From</th><th scope="col" class="right">Took</th><th scope="col">Ended</th><th scope="col">Worker, error</th></tr></thead>
    <tbody>
      ${timeline.spans.map(
        (span) => html`<tr key=${`${span.kind}${span.from}`}>
          <td>${span.label}</td>
          <td><time datetime=${new Date(span.from).toISOString()} title=${wholeTime(span.from)}>+${duration(span.from - timeline.from)}</time></td>
          <td class="right figure">${duration(span.to - span.from)}</td>
          <td>${span.outcome ? html`<${Status} status=${span.outcome} />` : span.isOpen ? "not yet" : ""}</td>
          <td>${span.worker && html`<span class="mono">${span.worker}</span> `}${span.error && html`<${Text} text=${span.error} />`}</td>
        </tr>`,
      )}
    </tbody>
  </table></div>`;
}
