// @ts-check
/** Times, durations and figures in words: `14 s ago`, `4.9 s`, `18,240`, `1.2 GB`. */
import { now } from "./clock.js";
import { html, useEffect, useState } from "./preact.js";

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;

const DATE = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const DATE_AND_YEAR = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
const WHOLE = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "long" });
const CLOCK = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const FIGURE = new Intl.NumberFormat("en-US");

/** `230 ms`, `4.9 s`, `12 min 4 s`, `3 h 5 min`, `2 d 4 h`. @param {number | null | undefined} ms */
export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < SECOND) return `${Math.round(ms)} ms`;
  if (ms < 10 * SECOND) return `${(ms / SECOND).toFixed(1).replace(/\.0$/, "")} s`;
  if (ms < MINUTE) return `${Math.round(ms / SECOND)} s`;
  if (ms < HOUR) return pair(ms, MINUTE, "min", SECOND, "s");
  return ms < DAY ? pair(ms, HOUR, "h", MINUTE, "min") : pair(ms, DAY, "d", HOUR, "h");
}

/** @param {number} ms @param {number} big @param {string} name @param {number} small @param {string} part */
function pair(ms, big, name, small, part) {
  const rest = Math.floor((ms % big) / small);
  return `${Math.floor(ms / big)} ${name}${rest ? ` ${rest} ${part}` : ""}`;
}

/** `0:06`, `1:02:09`: a duration that ticks. @param {number} ms */
export function clock(ms) {
  const seconds = Math.max(0, Math.floor(ms / SECOND));
  const two = (/** @type {number} */ value) => String(value).padStart(2, "0");
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** @type {[number, string][]} */
const LARGE = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"]];

/** `18,240`; from 100,000 `124k`, `1.2M`. @param {number | null | undefined} value */
export function figure(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of LARGE) if (Math.abs(value) >= size) return `${(value / size).toFixed(1)}${unit}`;
  if (Math.abs(value) >= 1e5) return `${Math.round(value / 1e3)}k`;
  return FIGURE.format(Number.isInteger(value) ? value : Number(value.toPrecision(3)));
}

/** All digits, for titles. @param {number} value */
export const exact = (value) => FIGURE.format(value);

/** `3.4 MB`. @param {number | null | undefined} value */
export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(value, 1)) / 3));
  const amount = value / 1000 ** power;
  return `${power && amount < 10 ? amount.toFixed(1) : Math.round(amount)} ${units[power]}`;
}

/** `11.2%`. @param {number} part @param {number} whole */
export function percent(part, whole) {
  const value = whole ? (100 * part) / whole : 0;
  return `${value && value < 10 ? value.toFixed(1) : Math.round(value)}%`;
}

/** `3 tasks`, `1 task`. @param {number} count @param {string} word @param {string} [words] */
export const many = (count, word, words = `${word}s`) => `${figure(count)} ${count === 1 ? word : words}`;

/** `14 s ago`, `in 3 min`; from a day on the date. @param {number} atMs @param {number} nowMs */
export function relative(atMs, nowMs) {
  const away = Math.abs(nowMs - atMs);
  if (away >= DAY) return date(atMs, nowMs);
  if (away < SECOND) return "now";
  const unit = away < MINUTE ? `${Math.floor(away / SECOND)} s` : away < HOUR ? `${Math.floor(away / MINUTE)} min` : `${Math.floor(away / HOUR)} h`;
  return atMs > nowMs ? `in ${unit}` : `${unit} ago`;
}

/** `5 Nov, 14:58`, with the year if it isn't this one. @param {number} atMs @param {number} [nowMs] */
export function date(atMs, nowMs = now()) {
  const isThisYear = new Date(atMs).getFullYear() === new Date(nowMs).getFullYear();
  return (isThisYear ? DATE : DATE_AND_YEAR).format(atMs);
}

/** `14:58:03`. @param {number} atMs */
export const timeOfDay = (atMs) => CLOCK.format(atMs);

/** The whole time in this zone and in UTC, for titles. @param {number} atMs */
export const wholeTime = (atMs) => `${WHOLE.format(atMs)} · ${new Date(atMs).toISOString()}`;

/** @type {Set<(now: number) => void>} */
const TICKING = new Set();
setInterval(() => document.hidden || TICKING.forEach((tick) => tick(now())), SECOND);

/** The time, once a second: the component is rendered again each second while the page is visible. */
export function useNow(isNeeded = true) {
  const [value, set] = useState(now());
  useEffect(() => {
    if (!isNeeded) return undefined;
    TICKING.add(set);
    return () => void TICKING.delete(set);
  }, [isNeeded]);
  return value;
}

/** A time as `14 s ago`, with the whole time as its title. @param {{ at: string | number | null | undefined }} props */
export function Ago({ at }) {
  const atMs = typeof at === "string" ? Date.parse(at) : (at ?? NaN);
  const nowMs = useNow(Math.abs(now() - atMs) < DAY);
  if (Number.isNaN(atMs)) return html`<span class="muted">–</span>`;
  return html`<time datetime=${new Date(atMs).toISOString()} title=${wholeTime(atMs)}>${relative(atMs, nowMs)}</time>`;
}

/** How long something runs by now, ticking: `0:06`. @param {{ since: string | number }} props */
export function Running({ since }) {
  const sinceMs = typeof since === "string" ? Date.parse(since) : since;
  return html`<time class="figure" title=${`since ${wholeTime(sinceMs)}`}>${clock(useNow() - sinceMs)}</time>`;
}

/** A count in short, with all digits as its title. @param {{ value: number | null | undefined }} props */
export const Count = ({ value }) => html`<span class="figure" title=${(value ?? 0) >= 1e5 ? exact(value ?? 0) : undefined}>${figure(value)}</span>`;
