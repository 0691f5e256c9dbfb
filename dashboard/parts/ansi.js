// @ts-check
/** Colours of terminals: a line becomes pieces of text with classes of style.css. Other sequences are dropped. */

/**
 * @typedef {{fg: number | null, bg: number | null, flags: string}} AnsiState `fg`, `bg`: 0 to 7; `flags`: sorted letters
 * of b(old) d(im) i(talic) u(nderline) r(everse) s(trike)
 */

/** @type {AnsiState} */
export const PLAIN = { fg: null, bg: null, flags: "" };

// CSI sequences; OSC, DCS, PM, APC and SOS with their text; other escapes of two or three characters.
const SEQUENCE = /(?:\x1b\[|\x9b)([0-?]*)[ -/]*([@-~])|(?:\x1b[\]P^_X]|[\x9d\x90\x9e\x9f\x98])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)|\x1b[ -/]*[0-~]/g;

/** @type {Record<number, string>} */
const ON = { 1: "b", 2: "d", 3: "i", 4: "u", 7: "r", 9: "s" };
/** @type {Record<number, string>} */
const OFF = { 21: "u", 22: "bd", 23: "i", 24: "u", 27: "r", 29: "s" };
/** @type {Record<string, string>} */
const CLASSES = { b: "ansi-bold", d: "ansi-dim", i: "ansi-italic", u: "ansi-underline", s: "ansi-strike" };

/**
 * The pieces of a line, and the state for the next line of its stream.
 * @param {string} line
 * @param {AnsiState} [state]
 * @returns {{pieces: Array<{text: string, classes: string}>, state: AnsiState}}
 */
export function parseAnsi(line, state = PLAIN) {
  const pieces = [];
  let from = 0;
  for (const match of line.matchAll(SEQUENCE)) {
    if (match.index > from) pieces.push({ text: line.slice(from, match.index), classes: classesOf(state) });
    if (match[2] === "m") state = styled(state, match[1]);
    from = match.index + match[0].length;
  }
  if (from < line.length) pieces.push({ text: line.slice(from), classes: classesOf(state) });
  return { pieces, state };
}

/** The line without its sequences, for finding and copying. @param {string} line */
export function withoutAnsi(line) {
  return line.replace(SEQUENCE, "");
}

/** @param {AnsiState} state @param {string} parameters @returns {AnsiState} */
function styled(state, parameters) {
  let { fg, bg, flags } = state;
  const codes = parameters.split(";").map((each) => (/^\d{0,4}(:|$)/.test(each) ? each : "-1"));
  for (let at = 0; at < codes.length; at++) {
    const [code, ...sub] = codes[at].split(":").map(Number);
    if (code === 0) [fg, bg, flags] = [null, null, ""];
    else if (code in ON) flags = code === 4 && sub[0] === 0 ? without(flags, "u") : withFlag(flags, ON[code]);
    else if (code in OFF) flags = code === 21 ? withFlag(flags, "u") : without(flags, OFF[code]);
    else if (code >= 30 && code <= 37) fg = code - 30;
    else if (code >= 90 && code <= 97) fg = code - 90;
    else if (code === 39) fg = null;
    else if (code >= 40 && code <= 47) bg = code - 40;
    else if (code >= 100 && code <= 107) bg = code - 100;
    else if (code === 49) bg = null;
    else if (code === 38 || code === 48) {
      const given = sub.length ? sub : codes.slice(at + 1).map(Number);
      const length = given[0] === 5 ? 2 : given[0] === 2 ? 4 : 0;
      const rgb = sub.length > 4 ? given.slice(-3) : given.slice(1, 4); // 38:2::r:g:b has a colour space
      const colour = given[0] === 5 ? indexed(given[1]) : given[0] === 2 ? nearest(rgb) : null;
      if (code === 38) fg = colour;
      else bg = colour;
      if (!sub.length) at += length;
    }
  }
  return { fg, bg, flags };
}

/** One of 256 colours as one of 8. @param {number} index */
function indexed(index) {
  if (!(index >= 0 && index <= 255)) return null;
  if (index < 16) return index % 8;
  if (index >= 232) return index < 244 ? 0 : 7;
  const cube = index - 16;
  return nearest([Math.floor(cube / 36) * 51, (Math.floor(cube / 6) % 6) * 51, (cube % 6) * 51]);
}

/** A colour as one of 8: the parts that are bright against the brightest one. @param {number[]} rgb */
function nearest([red, green, blue]) {
  if (![red, green, blue].every((part) => part >= 0 && part <= 255)) return null;
  const most = Math.max(red, green, blue);
  if (most < 64) return 0;
  const is = (/** @type {number} */ part) => (part > most * 0.6 ? 1 : 0);
  return is(red) | (is(green) << 1) | (is(blue) << 2);
}

/** @param {string} flags @param {string} flag */
const withFlag = (flags, flag) => (flags.includes(flag) ? flags : [...flags, flag].sort().join(""));
/** @param {string} flags @param {string} gone */
const without = (flags, gone) => [...flags].filter((each) => !gone.includes(each)).join("");

/** @param {AnsiState} state */
function classesOf({ fg, bg, flags }) {
  if (flags.includes("r")) [fg, bg] = [bg ?? 0, fg ?? 7];
  const classes = [...flags].map((flag) => CLASSES[flag]).filter(Boolean);
  if (bg !== null) classes.push(`ansi-bg-${bg}`);
  else if (fg !== null) classes.push(`ansi-fg-${fg}`); // on a coloured ground, text keeps its own colour: it stays readable
  return classes.join(" ");
}
