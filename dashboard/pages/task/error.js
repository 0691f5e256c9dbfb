// @ts-check
/** Why a task failed: the error, the user's innermost frame, the whole traceback, and what is known of a crash. */
import { ExactNumber, writeJson } from "../../parts/exact.js";
import { html, useContext } from "../../parts/preact.js";
import { href, path } from "../../parts/router.js";
import { SessionContext } from "../../parts/session.js";
import { useData } from "../../parts/state.js";
import { CopyButton, Text } from "../../parts/text.js";
import { bytes, duration, figure } from "../../parts/time.js";
import { Failure } from "../../parts/frames.js";

/** @param {{ record: any }} props */
export function ErrorPanel({ record }) {
  const { error, failure = {}, reason } = record;
  const fingerprint = failure.fingerprint ?? record.fingerprint;
  const { project } = useContext(SessionContext);
  const group = useData(fingerprint && project === null ? `/${path("failures", fingerprint)}` : null);
  const tasks = group.value?.tasks ?? 0;
  return html`<section class="card error-card" aria-labelledby="error-title">
    <header class="card-head">
      <h2 id="error-title">Error</h2>
      ${fingerprint && project === null && html`<a href=${href(path("failures", fingerprint))}>${tasks > 1 ? `${figure(tasks)} like this` : "Failures like this"}</a>`}
      ${failure.traceback && html`<${CopyButton} text=${failure.traceback} label="Copy the traceback" />`}
    </header>
    <p class="error-text"><${Text} text=${error ?? reason ?? "No error was recorded."} /></p>
    ${failure.traceback && html`<${Failure} text=${failure.traceback} />`}
    <${Dossier} failure=${failure} />
  </section>`;
}

const KNOWN = new Set(["reason", "message", "exception", "traceback", "fingerprint", "build", "retryable"]);

/** What else the worker has recorded, such as how its process died. @param {{ failure: Record<string, any> }} props */
function Dossier({ failure }) {
  const rest = Object.entries(failure).filter(([name, value]) => !KNOWN.has(name) && value !== null && value !== undefined);
  const facts = [["reason", failure.reason], ["exception", failure.exception], ["build", failure.build], ...rest.filter(([, value]) => !isLong(value))];
  const long = rest.filter(([, value]) => isLong(value));
  return html`<dl class="facts">
      ${facts.filter(([, value]) => value).map(([name, value]) => html`<dt>${words(name)}</dt><dd><${Text} text=${said(name, value)} /></dd>`)}
    </dl>
    ${long.map(
      ([name, value]) => html`<details key=${name} class="dossier">
        <summary>${words(name)}</summary>
        <pre><${Text} text=${Array.isArray(value) ? value.map(lineOf).join("\n") : typeof value === "string" ? value : writeJson(value, 2)} /></pre>
      </details>`,
    )}`;
}

/** @param {any} value */
const isFlat = (value) => !Array.isArray(value) && Object.values(value).every((each) => typeof each !== "object");
/** @param {any} value */
const isLong = (value) => (typeof value === "object" && !isFlat(value)) || (typeof value === "string" && (value.length > 200 || value.includes("\n")));
/** @param {any} each */
const lineOf = (each) => (typeof each === "string" ? each : (each?.text ?? writeJson(each)));
/** @param {string} name */
const words = (name) => name.replace(/_(s|ms|bytes|kb)$/, "").replaceAll("_", " ");

/** @param {string} name @param {any} value @returns {string} */
function said(name, value) {
  if (value instanceof ExactNumber) return value.source;
  if (typeof value === "object") return Object.entries(value).map(([part, each]) => `${words(part)} ${said(part, each)}`).join(", ");
  if (typeof value !== "number") return String(value);
  if (name.endsWith("_bytes")) return bytes(value);
  if (name.endsWith("_kb")) return bytes(value * 1024);
  if (name.endsWith("_ms")) return duration(value);
  return name.endsWith("_s") ? duration(value * 1000) : String(value);
}
