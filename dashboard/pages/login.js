// @ts-check
/** Login with an API key. */
import { Problem } from "../parts/api.js";
import { toast } from "../parts/dialog.js";
import { html, useState } from "../parts/preact.js";
import { signIn } from "../parts/session.js";
import { sentence } from "../parts/state.js";

/** @param {{ onSignedIn: () => void }} props */
export default function Login({ onSignedIn }) {
  const [state, set] = useState({ key: "", problem: "", isBusy: false });
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    set({ ...state, isBusy: true, problem: "" });
    try {
      if (!(await signIn(state.key.trim()))) toast("Redis can't store a session now: you are signed in until you close this tab.");
      onSignedIn();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      set({ ...state, isBusy: false, problem: sentence(error.message) });
    }
  };
  return html`<main class="login">
    <h1>Taskpool</h1>
    <form class="card" onSubmit=${submit}>
      <label class="field">API key
        <input type="password" autocomplete="current-password" autofocus required spellcheck="false" aria-describedby="login-help"
          value=${state.key} onInput=${(/** @type {any} */ event) => set({ ...state, key: event.target.value })} />
      </label>
      ${state.problem && html`<p class="banner critical" role="alert">${state.problem}</p>`}
      <button class="primary" disabled=${state.isBusy}>Sign in</button>
      <p id="login-help" class="small muted">An administrator makes one: <code>taskpool keys create NAME --scope tasks:read</code></p>
    </form>
  </main>`;
}
