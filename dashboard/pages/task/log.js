// @ts-check
/** The log of a task: it follows a running one, finds text, and shows as many lines as there is room for. */
import { API } from "../../parts/api.js";
import { follow } from "../../parts/follow.js";
import { html, useCallback, useEffect, useRef, useState } from "../../parts/preact.js";
import { sentence } from "../../parts/state.js";
import { CopyButton, Text } from "../../parts/text.js";
import { clock, exact, wholeTime } from "../../parts/time.js";
import { LogLines, found, lineAt, marked } from "./log_lines.js";

const ROW = 18; // px, as in the style
const EXTRA = 10; // rows beyond what is visible
const MOST_PX = 480; // of the box
const RENDER_MS = 250;

/**
 * The log of a task, followed until its end.
 * @param {string} id
 * @returns {{ lines: import("./log_lines.js").Line[], total: number, problem: string, isOver: boolean }}
 */
export function useLog(id) {
  const [state, set] = useState({ id, lines: /** @type {any[]} */ ([]), total: 0, problem: "", isOver: false });
  useEffect(() => {
    const log = new LogLines();
    const abort = new AbortController();
    let timer = 0;
    let more = { problem: "", isOver: false };
    const show = (/** @type {Partial<typeof more>} */ now = {}) => {
      more = { ...more, ...now };
      timer ||= window.setTimeout(() => {
        timer = 0;
        set({ id, lines: log.lines.slice(), total: log.total, ...more });
      }, RENDER_MS);
    };
    const heard = (/** @type {string} */ name, /** @type {any} */ data) => {
      if (name === "end" || name === "gone") return true;
      if (typeof data.text === "string") log.add(data);
      show();
      return false;
    };
    const path = `/tasks/${encodeURIComponent(id)}/logs`;
    const onState = (/** @type {Error | null} */ error) => show({ problem: error ? sentence(error.message) : "" });
    follow(path, heard, { query: { follow: "true", format: "events" }, signal: abort.signal, onState })
      .then(() => show({ isOver: true, problem: "" }))
      .catch((error) => show({ isOver: true, problem: sentence(error.message) }));
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [id]);
  return state.id === id ? state : { lines: [], total: 0, problem: "", isOver: false };
}

/**
 * @param {{ id: string, log: ReturnType<typeof useLog>, startedAt: (attempt: number) => number,
 *   goTo: { at: number, count: number } | null, onSeen: (at: number | null) => void }} props `startedAt`: the beginning of an
 *   attempt, from which times are counted. `goTo`: a time that was picked
 */
export function Log({ id, log, startedAt, goTo, onSeen }) {
  const { lines, total, problem, isOver } = log;
  const box = useRef(/** @type {HTMLDivElement | null} */ (null));
  const lastTop = useRef(0);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(360);
  const [isFollowing, setFollowing] = useState(true);
  const [wanted, setWanted] = useState("");
  const [current, setCurrent] = useState(0);
  const places = found(lines, wanted);
  const dropped = total - lines.length;

  const scrollTo = useCallback((/** @type {number} */ place) => {
    const element = box.current;
    if (element) element.scrollTop = Math.max(0, place * ROW - element.clientHeight / 3);
  }, []);
  useEffect(() => {
    const element = box.current;
    if (element && isFollowing && !isOver) element.scrollTop = element.scrollHeight;
  }, [lines.length, isFollowing, isOver]);
  useEffect(() => {
    if (!goTo) return;
    setFollowing(false);
    scrollTo(lineAt(lines, goTo.at));
  }, [goTo?.count]);
  useEffect(() => {
    const element = box.current;
    if (!element) return undefined;
    const observer = new ResizeObserver(() => setHeight(element.clientHeight));
    observer.observe(element);
    return () => observer.disconnect();
  }, [lines.length > 0]);

  const first = Math.max(0, Math.floor(top / ROW) - EXTRA);
  const last = Math.min(lines.length, Math.ceil((top + height) / ROW) + EXTRA);
  const seen = lines[Math.min(Math.floor(top / ROW), lines.length - 1)];
  useEffect(() => onSeen(seen && lines.length * ROW > height ? seen.at : null), [seen?.at, height]);

  const scrolled = () => {
    const element = box.current;
    if (!element) return; // another task is shown since it was scrolled
    // Lines may have come since the box was scrolled to its end: only a scroll upwards ends the following.
    if (element.scrollTop + element.clientHeight >= element.scrollHeight - ROW) setFollowing(true);
    else if (element.scrollTop < lastTop.current) setFollowing(false);
    lastTop.current = element.scrollTop;
    setTop(element.scrollTop);
  };
  const step = (/** @type {number} */ by) => {
    if (!places.length) return;
    const next = (current + by + places.length) % places.length;
    setCurrent(next);
    setFollowing(false);
    scrollTo(places[next]);
  };
  const look = (/** @type {string} */ text) => {
    setWanted(text);
    setCurrent(0);
    const [place] = found(lines, text);
    if (place !== undefined) {
      setFollowing(false);
      scrollTo(place);
    }
  };
  const keyed = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Enter") step(event.shiftKey ? -1 : 1);
    else if (event.key === "Escape") look("");
    else return;
    event.preventDefault();
  };
  const width = Math.max(...lines.slice(first, last).map(({ text }) => text.length), 0);

  return html`<section class="card log" aria-labelledby="log-title">
    <header class="card-head">
      <h2 id="log-title">Log</h2>
      <span class="muted figure">${exact(total)} ${total === 1 ? "line" : "lines"}</span>
      <span class="grow"></span>
      ${
        lines.length > 0 &&
        html`<input type="search" class="log-find" placeholder="Find in the log" aria-label="Find in the log" value=${wanted}
            onInput=${(/** @type {any} */ event) => look(event.target.value)} onKeyDown=${keyed} />
          <span class="muted figure" role="status">${wanted && (places.length ? `${current + 1} of ${places.length}` : "not found")}</span>
          ${!isOver && html`<label class="check"><input type="checkbox" checked=${isFollowing} onChange=${(/** @type {any} */ event) => setFollowing(event.target.checked)} /> Follow</label>`}
          <${CopyButton} text=${() => lines.map(({ text }) => text).join("\n")} label="Copy the log" />
          <a href=${`${API}/tasks/${encodeURIComponent(id)}/logs?format=text`} target="_blank" rel="noopener">As text</a>`
      }
    </header>
    ${problem && html`<p class="banner warning" role="alert">${problem}</p>`}
    ${dropped > 0 && html`<p class="muted note">The newest ${exact(lines.length)} lines of ${exact(total)}; “As text” has all of them.</p>`}
    ${
      lines.length === 0
        ? html`<p class="muted note">${isOver ? "It wrote nothing." : "It has written nothing yet."}</p>`
        : html`<div class=${`log-box ${lines.some(levelOf) ? "has-levels" : ""}`} style=${{ height: `${Math.min(lines.length * ROW + 18, MOST_PX)}px` }} ref=${box} onScroll=${scrolled} tabindex="0" role="region" aria-label="Lines of the log">
            <div class="log-all" style=${{ height: `${lines.length * ROW}px`, minWidth: `${width + 18}ch` }}>
              ${lines.slice(first, last).map(
                (line, index) => html`<${LineView} key=${line.number} line=${line} top=${(first + index) * ROW} wanted=${wanted}
                  since=${line.at - startedAt(line.attempt)} isCurrent=${places[current] === first + index} />`,
              )}
            </div>
          </div>`
    }
  </section>`;
}

/** @param {{ line: import("./log_lines.js").Line, top: number, wanted: string, since: number, isCurrent: boolean }} props */
function LineView({ line, top, wanted, since, isCurrent }) {
  const level = levelOf(line);
  return html`<div class=${`log-line ${isCurrent ? "is-current" : ""} ${level ? `level-${level}` : ""}`} style=${{ top: `${top}px` }}>
    <span class="log-time figure" title=${`attempt ${line.attempt} · ${line.stream}${line.logger ? ` · ${line.logger}` : ""} · ${wholeTime(line.at)}`}>${offset(since)}</span>
    <span class="log-level">${level}</span>
    <span class="log-text">${marked(line.pieces, wanted).map((piece) =>
      piece.isFound
        ? html`<mark class=${piece.classes}><${Text} text=${piece.text} /></mark>`
        : html`<span class=${piece.classes}><${Text} text=${piece.text} /></span>`,
    )}${line.cut > 0 && html`<span class="muted"> … ${exact(line.cut)} more characters</span>`}</span>
  </div>`;
}

/** The level of a record of `logging`, or a stream that stands out. @param {import("./log_lines.js").Line} line */
const levelOf = ({ level, stream }) => level ?? (stream === "stderr" || stream === "taskpool" ? stream : "");

/** @param {number} ms */
function offset(ms) {
  if (!Number.isFinite(ms)) return "";
  if (ms < 60_000) return `+${(ms / 1000).toFixed(2)} s`;
  return `+${clock(ms)}.${String(Math.floor(ms / 10) % 100).padStart(2, "0")}`;
}
