// @ts-check
/** The server's time. The clock of a browser may be wrong, and then "14 s ago" and "late" would be. */

const EXACT_MS = 2000; // a `Date` has whole seconds, and servers renew it once a second

let aheadMs = 0;

/** The time of the server, in ms since 1970. */
export const now = () => Date.now() + aheadMs;

/**
 * Set the clock by the header `Date` of an answer, if that shows that it is wrong.
 * @param {string | null} date @param {number} askedMs when it was asked, by the browser's clock
 */
export function setClock(date, askedMs) {
  const sentMs = Date.parse(date ?? "");
  const least = sentMs - Date.now();
  const most = sentMs + EXACT_MS - askedMs;
  if (least <= most && (aheadMs < least || aheadMs > most)) aheadMs = (least + most) / 2;
}
