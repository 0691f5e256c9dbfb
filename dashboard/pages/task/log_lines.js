// @ts-check
/** The lines of a log as they arrive: the newest ones are kept, each with its colours and its plain text. */
import { PLAIN, parseAnsi, withoutAnsi } from "../../parts/ansi.js";

export const MOST_LINES = 5000;
export const LONGEST_LINE = 2000;

/**
 * @typedef {{ number: number, at: number, attempt: number, stream: string, level?: string, logger?: string, text: string,
 *   pieces: Array<{ text: string, classes: string }>, cut: number }} Line
 * `text`: without colours. `cut`: how many characters of it aren't kept
 */

/** The newest lines of a log. */
export class LogLines {
  constructor() {
    /** @type {Line[]} */
    this.lines = [];
    this.total = 0;
    /** @type {Map<string, import("../../parts/ansi.js").AnsiState>} */
    this.states = new Map();
  }

  /** @param {any} given a line as the API gives it */
  add({ at, attempt = 0, stream = "log", level, logger, text }) {
    const source = `${attempt} ${stream}`;
    const { pieces, state } = parseAnsi(text.slice(0, LONGEST_LINE), this.states.get(source) ?? PLAIN);
    this.states.set(source, state);
    const cut = Math.max(text.length - LONGEST_LINE, 0);
    const plain = withoutAnsi(text.slice(0, LONGEST_LINE));
    this.total++;
    this.lines.push({ number: this.total, at: Date.parse(at), attempt, stream, level, logger, text: plain, pieces, cut });
    if (this.lines.length > MOST_LINES * 1.1) this.lines.splice(0, this.lines.length - MOST_LINES);
  }
}

/**
 * The places in `lines` whose text contains `wanted`, whatever the case.
 * @param {Line[]} lines @param {string} wanted
 */
export function found(lines, wanted) {
  const low = wanted.toLowerCase();
  return low ? lines.flatMap(({ text }, at) => (text.toLowerCase().includes(low) ? [at] : [])) : [];
}

/**
 * The pieces of a line, cut where `wanted` begins and ends; `isFound` marks what was looked for.
 * @param {Line["pieces"]} pieces @param {string} wanted
 * @returns {Array<{ text: string, classes: string, isFound: boolean }>}
 */
export function marked(pieces, wanted) {
  const low = wanted.toLowerCase();
  const whole = pieces.map(({ text }) => text).join("").toLowerCase();
  /** @type {Array<[number, number]>} */
  const places = [];
  for (let at = low ? whole.indexOf(low) : -1; at >= 0; at = whole.indexOf(low, at + low.length)) places.push([at, at + low.length]);
  const cuts = [...new Set(places.flat())];
  const parts = [];
  let start = 0;
  for (const { text, classes } of pieces) {
    const end = start + text.length;
    const edges = [start, ...cuts.filter((cut) => cut > start && cut < end), end];
    for (let index = 1; index < edges.length; index++) {
      const [from, to] = [edges[index - 1], edges[index]];
      const isFound = places.some(([first, last]) => first <= from && to <= last);
      if (to > from) parts.push({ text: text.slice(from - start, to - start), classes, isFound });
    }
    start = end;
  }
  return parts;
}

/** The first line that wasn't written before a time. @param {Line[]} lines @param {number} at */
export function lineAt(lines, at) {
  const place = lines.findIndex((line) => line.at >= at);
  return place < 0 ? Math.max(lines.length - 1, 0) : place;
}
