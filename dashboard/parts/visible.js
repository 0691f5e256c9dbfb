// @ts-check
/** Text from tasks, with everything shown that a browser would hide: control characters, and those that turn text
 * around or take no room. */

// As taskpool/text.py has them: controls but tab and newline, bidi controls, what takes no room or has no look, lone
// surrogates. The joiners U+200C and U+200D are parts of words and of emoji.
const HIDDEN =
  /[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\u{1bca0}-\u{1bca3}\u{1d173}-\u{1d17a}\u{e0000}-\u{e0fff}]/gu;
const ANY_HIDDEN = new RegExp(HIDDEN.source, "u");
const MOST_PARTS = 500;

const CONTROLS = "NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US".split(" ");

/** Whether a text has no hidden characters. @param {string} text */
export const isVisible = (text) => !ANY_HIDDEN.test(text);

/**
 * The parts of a text: plain texts, and the names of hidden characters between them. Of a text with very many of them, the
 * rest is one plain text with the names in brackets.
 * @param {string} text
 * @returns {Array<string | {hidden: string}>}
 */
export function visibleParts(text) {
  const parts = [];
  let from = 0;
  for (const match of text.matchAll(HIDDEN)) {
    if (parts.length >= MOST_PARTS) return [...parts, visible(text.slice(from))];
    if (match.index > from) parts.push(text.slice(from, match.index));
    parts.push({ hidden: nameOf(match[0]) });
    from = match.index + match[0].length;
  }
  if (from < text.length || !parts.length) parts.push(text.slice(from));
  return parts;
}

/**
 * The text with names in the place of hidden characters.
 * @param {string} text
 */
export function visible(text) {
  return text.replace(HIDDEN, (hidden) => `[${nameOf(hidden)}]`);
}

/** @param {string} hidden */
function nameOf(hidden) {
  const code = /** @type {number} */ (hidden.codePointAt(0));
  if (code < 0x20) return CONTROLS[code];
  return `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
}
