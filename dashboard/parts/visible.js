// @ts-check
/** Text from tasks, with everything shown that a browser would hide: control characters, and those that turn text
 * around or take no room. */

// C0 and C1 controls but tab and newline, bidi controls, zero-width and other invisible characters, lone surrogates.
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|\udb40[\udc00-\udfff]/g;

const CONTROLS = "NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US".split(" ");

/**
 * The parts of a text: plain texts, and the names of hidden characters between them.
 * @param {string} text
 * @returns {Array<string | {hidden: string}>}
 */
export function visibleParts(text) {
  const parts = [];
  let from = 0;
  for (const match of text.matchAll(HIDDEN)) {
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
  return text.replace(HIDDEN, nameOf);
}

/** @param {string} hidden */
function nameOf(hidden) {
  const code = /** @type {number} */ (hidden.codePointAt(0));
  if (code < 0x20) return CONTROLS[code];
  return `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
}
