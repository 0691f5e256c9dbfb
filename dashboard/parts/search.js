// @ts-check
/** The search box's language: `status:failed type:resize since:1h "KeyError"`. Its words are the parameters of GET /tasks,
 * of the page's address and of `taskpool list`. Text without a word is an id, or else text of the error. */

/** @typedef {Record<string, string>} Filter */
/** @typedef {{word: string, meaning: string, example: string, values?: string, alias?: string[]}} Word */

/** @type {Word[]} */
export const WORDS = [
  { word: "status", meaning: "what it does, or how it ended", example: "status:failed", values: "statuses" },
  { word: "type", meaning: "its task type", example: "type:resize", values: "types" },
  { word: "queue", meaning: "the queue it is in", example: "queue:default", values: "queues" },
  { word: "tag", meaning: "one of its tags", example: "tag:nightly" },
  { word: "error", meaning: "a text in its error", example: 'error:"connection refused"' },
  { word: "since", meaning: "submitted since a time, or not longer ago than this", example: "since:1h", values: "spans" },
  { word: "until", meaning: "submitted before a time, or longer ago than this", example: "until:30m", values: "spans" },
  { word: "min_duration", meaning: "ran at least this long", example: "min_duration:5s", alias: ["took"] },
  { word: "attempts", meaning: "began at least this many attempts", example: "attempts:2" },
  { word: "worker", meaning: "the worker process that runs or ran it", example: "worker:host-1.2345" },
  { word: "workflow", meaning: "the workflow it belongs to", example: "workflow:d217r8m2n3aolstf0000" },
  { word: "node", meaning: "its node in that workflow", example: "node:import" },
  { word: "parent", meaning: "it depends on this task", example: "parent:d217r8m2n3aolstf2ch5" },
  { word: "added_by", meaning: "this task has added it", example: "added_by:d217r8m2n3aolstf2ch5" },
  { word: "project", meaning: "the project it belongs to", example: "project:shop" },
  { word: "submitted_by", meaning: "the API key it was submitted with", example: 'submitted_by:"a service"' },
  { word: "fingerprint", meaning: "its failure group", example: "fingerprint:3f9c2a7b1d04" },
];

/** The parameters of GET /tasks that a search may set. */
export const NAMES = [...WORDS.map((each) => each.word), "text"];

const SPANS = ["15m", "1h", "24h", "7d"];

/** @typedef {{text: string, start: number, end: number, word: string | null, value: string}} Token */

/**
 * The words of a text. Quotes keep blanks; in them, `\"` is a quote and `\\` a backslash.
 * @param {string} text
 * @returns {Token[]}
 */
export function tokens(text) {
  const found = [];
  for (const match of text.matchAll(/(?:([a-z_]+):)?(?:"((?:[^"\\]|\\[^])*)("|$)|(\S*))/gi)) {
    if (!match[0]) continue;
    const [all, name, quoted, , plain] = match;
    const word = name ? nameOf(name) : null;
    const value = quoted === undefined ? plain : quoted.replace(/\\([^])/g, "$1");
    const isWord = word !== null && !(quoted === undefined && plain.startsWith("//")); // https://... is text
    found.push({
      text: all,
      start: match.index,
      end: match.index + all.length,
      word: isWord ? word : null,
      value: isWord || !name ? value : all,
    });
  }
  return found;
}

/** The word that a text names, in full; null: none. @param {string} name */
function nameOf(name) {
  const low = name.toLowerCase();
  return WORDS.find(({ word, alias = [] }) => word === low || alias.includes(low))?.word ?? null;
}

/**
 * What a text looks for, and what is wrong with it. Texts without a word are one text, with a blank between them.
 * @param {string} text
 * @returns {{filter: Filter, faults: string[]}}
 */
export function parse(text) {
  /** @type {Filter} */
  const filter = {};
  const faults = [];
  const free = [];
  for (const { text: written, word, value } of tokens(text)) {
    if (word === null) free.push(value);
    else if (!value) faults.push(`${written} needs a value, such as ${WORDS.find((each) => each.word === word)?.example}`);
    else if (word in filter) faults.push(`${word} is given twice`);
    else filter[word] = value;
  }
  const rest = free.join(" ").trim();
  if (rest) filter.text = rest;
  return { filter, faults };
}

/**
 * The text of a filter: what `parse` would read back.
 * @param {Filter} filter
 * @returns {string}
 */
export function format(filter) {
  const words = WORDS.map(({ word }) => word).filter((word) => filter[word]);
  const parts = words.map((word) => `${word}:${quoted(filter[word])}`);
  if (filter.text) {
    const isPlain = tokens(filter.text).every(({ word, value, text }) => word === null && value === text);
    parts.push(isPlain && !/\s\s|^\s|\s$|[\t\n]/.test(filter.text) ? filter.text : quoted(filter.text, true));
  }
  return parts.join(" ");
}

/** @param {string} value @param {boolean} [always] */
function quoted(value, always = false) {
  return always || /[\s"]/.test(value) ? `"${value.replace(/["\\]/g, "\\$&")}"` : value;
}

/**
 * The part of an address's query that is a filter.
 * @param {Record<string, string | undefined>} query
 * @returns {Filter}
 */
export function filterOf(query) {
  return Object.fromEntries(NAMES.flatMap((name) => (query[name] ? [[name, /** @type {string} */ (query[name])]] : [])));
}

/**
 * What may be meant at a place of the text: words with their meaning and an example, or values of the word there.
 * `known` has the names of `types`, `queues` and `statuses`.
 * @param {string} text
 * @param {number} at where the cursor is
 * @param {Record<string, string[]>} known
 * @returns {{start: number, end: number, items: Array<{insert: string, label: string, meaning: string, example: string}>}}
 */
export function complete(text, at, known) {
  const token = tokens(text).find(({ start, end }) => start < at && at <= end);
  const start = token?.start ?? at;
  const end = token?.end ?? at;
  const written = text.slice(start, at);
  const colon = written.indexOf(":");
  if (colon < 0) {
    const used = new Set(tokens(text).map(({ word }) => word));
    const low = written.toLowerCase();
    const fits = (/** @type {Word} */ { word, alias = [] }) => [word, ...alias].some((name) => name.startsWith(low));
    const items = WORDS.filter((each) => !used.has(each.word) && fits(each)).map(({ word, meaning, example }) => ({
      insert: `${word}:`,
      label: `${word}:`,
      meaning,
      example,
    }));
    return { start, end, items };
  }
  const word = WORDS.find((each) => each.word === nameOf(written.slice(0, colon)));
  if (!word) return { start, end, items: [] };
  const low = written.slice(colon + 1).replace(/^"/, "").toLowerCase();
  const values = word.values === "spans" ? SPANS : (known[word.values ?? ""] ?? []);
  const fitting = values.filter((value) => value.toLowerCase().includes(low) && value.toLowerCase() !== low);
  fitting.sort((a, b) => Number(b.toLowerCase().startsWith(low)) - Number(a.toLowerCase().startsWith(low)));
  const items = fitting.slice(0, 12).map((value) => ({
    insert: `${word.word}:${quoted(value)} `,
    label: value,
    meaning: "",
    example: "",
  }));
  return { start, end, items };
}
