// @ts-check
/** Python's tracebacks as frames, so that the user's frame stands first and those of libraries are folded. */

/**
 * @typedef {{kind: "frame", file: string, line: number, name: string, code: string, isUser: boolean}} Frame
 * @typedef {{kind: "text", text: string}} Text
 */

const FRAME = /^\s*File "(.+)", line (\d+)(?:, in (.*))?$/;
const LIBRARY = /(?:^|[\\/])(?:site-packages|dist-packages|taskpool|taskpool_workers)[\\/]|[\\/]lib[\\/]python[\d.]+[\\/]|^<frozen /;

/** Whether a file is code of the user: not of Python, of an installed package, or of Taskpool. @param {string} file */
export function isUserFile(file) {
  return !LIBRARY.test(file);
}

/**
 * The frames and the other lines of a traceback, in their order.
 * @param {string} text
 * @returns {Array<Frame | Text>}
 */
export function parseTraceback(text) {
  /** @type {Array<Frame | Text>} */
  const parts = [];
  for (const line of text.replace(/\n$/, "").split("\n")) {
    const last = parts.at(-1);
    const match = FRAME.exec(line);
    if (match) {
      const [, file, number, name = ""] = match;
      parts.push({ kind: "frame", file, line: Number(number), name, code: "", isUser: isUserFile(file) });
    } else if (last?.kind === "frame" && /^\s{4}/.test(line)) last.code += (last.code ? "\n" : "") + line.slice(4);
    else if (last?.kind === "text") last.text += `\n${line}`;
    else parts.push({ kind: "text", text: line });
  }
  return parts;
}

/**
 * The innermost frame of the user's, else the innermost one.
 * @param {Array<Frame | Text>} parts
 * @returns {Frame | undefined}
 */
export function innermost(parts) {
  const frames = /** @type {Frame[]} */ (parts.filter((part) => part.kind === "frame"));
  return frames.findLast((frame) => frame.isUser) ?? frames.at(-1);
}

/**
 * Neighbouring frames of libraries as one group each.
 * @param {Array<Frame | Text>} parts
 * @returns {Array<Frame | Text | {kind: "folded", frames: Frame[]}>}
 */
export function folded(parts) {
  /** @type {Array<any>} */
  const groups = [];
  for (const part of parts) {
    const last = groups.at(-1);
    if (part.kind !== "frame" || part.isUser) groups.push(part);
    else if (last?.kind === "folded") last.frames.push(part);
    else groups.push({ kind: "folded", frames: [part] });
  }
  return groups;
}
