// @ts-check
/** The life of a task as spans of time: what it waited for, its attempts, and the pauses between them. */

/**
 * @typedef {{kind: "waiting" | "confirmation" | "scheduled" | "queued" | "backoff" | "attempt", from: number, to: number,
 *   isOpen: boolean, label: string, attempt?: number, outcome?: string, error?: string, worker?: string}} Span
 * @typedef {{at: number, label: string}} Mark
 * @typedef {{spans: Span[], marks: Mark[], from: number, to: number, isCut: boolean}} Timeline
 */

/** @param {string | undefined} text */
const ms = (text) => (text === undefined ? NaN : Date.parse(text));

const AFTER = {
  failed: ["backoff", "back-off"],
  crashed: ["backoff", "held back after a crash"],
  lease_lost: ["backoff", "held back after a lost lease"],
  snoozed: ["scheduled", "snoozed"],
  asked: ["confirmation", "waited for an answer"],
};

/**
 * The timeline of a task's record.
 * @param {any} record the task's document
 * @param {number} now
 * @param {any[]} [parents] the documents of the tasks it depends on, as far as they are known
 * @returns {Timeline}
 */
export function timelineOf(record, now, parents = []) {
  const from = ms(record.created_at);
  const ended = ms(record.ended_at);
  const end = ended || Math.max(now, from);
  /** @type {Span[]} */
  const spans = [];
  /** @type {Mark[]} */
  const marks = [{ at: from, label: "submitted" }];
  const attempts = attemptsOf(record, end, ended);
  let at = from;
  /** @param {Span["kind"]} kind @param {number} to @param {string} label */
  const until = (kind, to, label, isOpen = false) => {
    if (!(to > at)) return;
    spans.push({ kind, from: at, to, label, isOpen });
    at = to;
  };
  const first = attempts[0]?.from ?? end;
  const isCut = Boolean(attempts.length) && (record.history ?? []).length >= 20;
  if (isCut) until("queued", first, "earlier attempts aren't kept any more");
  else beforeTheFirst(record, first, parents, until);
  attempts.forEach((attempt, index) => {
    if (index) {
      const before = attempts[index - 1];
      between(record, before, attempt.from, until);
    }
    spans.push(attempt);
    at = attempt.to;
  });
  const last = attempts.at(-1);
  if (last && !last.isOpen && end > last.to) {
    if (ended) marks.push({ at: end, label: record.status });
    else upToNow(record, end, until, last);
  }
  for (const answer of record.answers ?? []) marks.push({ at: ms(answer.at), label: `answered ${answer.question}` });
  if (record.confirmation) marks.push({ at: ms(record.confirmation.at), label: record.confirmation.decision });
  if (ended && !marks.some((mark) => mark.at === ended)) marks.push({ at: ended, label: record.status });
  marks.sort((a, b) => a.at - b.at);
  return { spans, marks, from, to: Math.max(end, from + 1), isCut };
}

/** @param {any} record @param {number} end @param {number} ended @returns {Span[]} */
function attemptsOf(record, end, ended) {
  /** @type {Span[]} */
  const spans = (record.history ?? []).map((/** @type {any} */ past) => ({
    kind: "attempt",
    from: ms(past.started_at),
    to: Math.max(ms(past.ended_at), ms(past.started_at)),
    isOpen: false,
    label: `attempt ${past.attempt}`,
    attempt: past.attempt,
    outcome: past.outcome,
    error: past.error,
    worker: past.worker,
  }));
  const started = ms(record.started_at);
  const isRunning = record.status === "in_progress" || record.status === "stopping";
  const isKept = spans.some((span) => span.from === started);
  if (started && !isKept && (isRunning || ended >= started)) {
    const { attempt, error, worker } = record;
    const to = Math.max(isRunning ? end : ended, started);
    spans.push({ kind: "attempt", from: started, to, isOpen: isRunning, label: `attempt ${attempt}`, attempt, outcome: record.status, error, worker });
  }
  return spans.sort((a, b) => a.from - b.from);
}

/** @typedef {(kind: Span["kind"], to: number, label: string, isOpen?: boolean) => void} Until */

/** @param {any} record @param {number} first @param {any[]} parents @param {Until} until */
function beforeTheFirst(record, first, parents, until) {
  const { status } = record;
  if (record.depends_on?.length) {
    const ends = parents.map((parent) => ms(parent.ended_at)).filter(Boolean);
    const names = record.depends_on.length === 1 ? "another task" : `${record.depends_on.length} tasks`;
    if (status === "waiting") until("waiting", first, `waits for ${names}`, true);
    else if (ends.length) until("waiting", Math.min(Math.max(...ends), first), `waited for ${names}`);
  }
  if (record.confirm) {
    const decided = ms(record.confirmation?.at);
    if (status === "waiting_confirmation") until("confirmation", first, "waits for a confirmation", true);
    else if (decided) until("confirmation", Math.min(decided, first), "waited for a confirmation");
  }
  const due = ms(record.run_at);
  if (status === "scheduled" && !record.attempt) until("scheduled", first, "scheduled", true);
  else if (due) until("scheduled", Math.min(due, first), "scheduled");
  const isQueued = status === "queued" && !record.history?.length;
  until(status === "waiting" ? "waiting" : "queued", first, isQueued ? "waits for a worker" : "waited for a worker", isQueued);
}

/** @param {any} record @param {Span} before @param {number} next @param {Until} until */
function between(record, before, next, until) {
  const [kind, label] = AFTER[/** @type {keyof typeof AFTER} */ (before.outcome)] ?? ["queued", "waited for a worker"];
  let to = next;
  if (kind === "confirmation") {
    const answered = (record.answers ?? []).map((/** @type {any} */ each) => ms(each.at));
    to = answered.find((/** @type {number} */ at) => at >= before.to && at <= next) ?? next;
  }
  until(/** @type {Span["kind"]} */ (kind), to, label);
  until("queued", next, "waited for a worker");
}

/** What an ended attempt is followed by, up to now. @param {any} record @param {number} end @param {Until} until @param {Span} last */
function upToNow(record, end, until, last) {
  if (record.status === "waiting_confirmation") until("confirmation", end, "waits for an answer", true);
  else if (record.status === "scheduled") {
    const [kind, label] = AFTER[/** @type {keyof typeof AFTER} */ (last.outcome)] ?? ["scheduled", "scheduled"];
    until(/** @type {Span["kind"]} */ (kind), end, label, true);
  } else {
    const queued = ms(record.enqueued_at);
    if (queued > last.to && queued < end) between(record, last, queued, until);
    until("queued", end, "waits for a worker", true);
  }
}

/**
 * Round times for an axis: at most `most` steps of a usual length, in ms from the start.
 * @param {number} length in ms
 * @param {number} [most]
 */
export function ticks(length, most = 6) {
  const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 15e3, 3e4, 6e4, 12e4, 3e5, 6e5, 9e5, 18e5, 36e5, 72e5, 108e5, 216e5, 432e5, 864e5];
  const step = steps.find((each) => length / each <= most) ?? 864e5 * Math.ceil(length / 864e5 / most);
  return Array.from({ length: Math.floor(length / step) + 1 }, (_, index) => index * step);
}
