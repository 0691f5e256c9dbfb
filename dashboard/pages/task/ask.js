// @ts-check
/** What a task asks a person: a confirmation before it starts, or a question in the middle of its work. */
import { Problem, post } from "../../parts/api.js";
import { writeJson } from "../../parts/exact.js";
import { SchemaForm, started } from "../../parts/form.js";
import { html, useContext, useState } from "../../parts/preact.js";
import { SessionContext } from "../../parts/session.js";
import { sentence } from "../../parts/state.js";
import { Text } from "../../parts/text.js";
import { Ago } from "../../parts/time.js";

/** @param {{ record: any, mayConfirm: boolean, onDone: (record: any) => void }} props */
export function Ask({ record, mayConfirm, onDone }) {
  const { question, confirm, id } = record;
  const { key, name } = useContext(SessionContext);
  const isAsked = !confirm?.who?.length || key === null || confirm.who.some((/** @type {string} */ each) => each === key || each === name);
  const [comment, setComment] = useState("");
  const [value, setValue] = useState(() => started(question?.schema));
  const [problem, setProblem] = useState(/** @type {Problem | null} */ (null));
  const [isBusy, setBusy] = useState(false);
  const send = async (/** @type {string} */ word, /** @type {any} */ body) => {
    setBusy(true);
    setProblem(null);
    try {
      onDone(await post(`/tasks/${encodeURIComponent(id)}/${word}`, { ...body, ...(comment && { comment }) }));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      setProblem(error);
    } finally {
      setBusy(false);
    }
  };
  const decide = (/** @type {string} */ word) => send(word, {});
  const answer = (/** @type {any} */ given) => send("answer", { question: question.name, answer: given });
  const isYesOrNo = question?.schema?.type === "boolean";
  return html`<section class="card ask" aria-labelledby="ask-title">
    <h2 id="ask-title">${question ? "It asks" : "Confirm it?"}</h2>
    <p class="question"><${Text} text=${question?.text ?? confirm?.text ?? "Run this task?"} /></p>
    <p class="muted">
      Asked <${Ago} at=${record.asked_at} />.
      ${record.answer_by && html` ${defaultOf(question, confirm)} <${Ago} at=${record.answer_by} />.`}
      ${confirm?.who?.length > 0 && html` Asked are: <${Text} text=${confirm.who.join(", ")} />.`}
    </p>
    ${
      !mayConfirm
        ? html`<p class="muted">Your key may not answer: it needs the scope <code>tasks:confirm</code>, and this task's type and queue.</p>`
        : !isAsked
          ? html`<p class="muted">Others are asked: your key isn't one of them.</p>`
          : html`${problem && html`<p class="banner critical" role="alert">${sentence(problem.message)}</p>`}
          ${question && !isYesOrNo && html`<${SchemaForm} schema=${question.schema ?? {}} value=${value} onChange=${setValue} faults=${problem?.errors} pointer="/answer" name="answer" />`}
          <label class="field"><span>Comment <span class="muted">optional</span></span>
            <input type="text" value=${comment} onInput=${(/** @type {any} */ event) => setComment(event.target.value)} />
          </label>
          <div class="buttons start">
            ${
              !question
                ? html`<button class="primary" disabled=${isBusy} onClick=${() => decide("confirm")}>Confirm</button>
                    <button disabled=${isBusy} onClick=${() => decide("reject")}>Reject</button>`
                : isYesOrNo
                  ? html`<button class="primary" disabled=${isBusy} onClick=${() => answer(true)}>Yes</button>
                      <button disabled=${isBusy} onClick=${() => answer(false)}>No</button>`
                  : html`<button class="primary" disabled=${isBusy || value === undefined} onClick=${() => answer(value)}>Answer</button>`
            }
          </div>`
    }
  </section>`;
}

/** What counts without an answer. @param {any} question @param {any} confirm */
function defaultOf(question, confirm) {
  if (!question) return confirm?.default === "confirm" ? "Confirmed by default" : "Rejected by default";
  return question.default === undefined || question.default === null ? "The time for an answer ends" : `The answer is ${writeJson(question.default)} by default`;
}
