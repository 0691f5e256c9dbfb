"use strict";

// Reads the document and shows it. A server that wants a key gets the one that is typed in here; it is kept nowhere.

const dark = matchMedia("(prefers-color-scheme: dark)");
const form = document.getElementById("key");
const secret = document.getElementById("secret");
const problem = document.getElementById("problem");

async function show(key) {
  let answer;
  try {
    answer = await fetch("openapi.json", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  } catch (error) {
    return ask(`The server can't be reached: ${error.message}`);
  }
  const spec = await answer.json().catch(() => ({ detail: `The server answered ${answer.status}` }));
  if (!answer.ok) {
    return ask(answer.status === 401 && !key ? "" : spec.detail || spec.title);
  }
  // "Execute" asks the server that served this page, below the same path, whatever that server knows of its prefix.
  spec.servers = [{ url: new URL(".", location).pathname.replace(/(.)\/$/, "$1") }];
  form.hidden = true;
  const ui = SwaggerUIBundle({
    spec,
    dom_id: "#document",
    deepLinking: true,
    displayRequestDuration: true,
    filter: true,
    validatorUrl: null,
    onComplete: () => key && ui.preauthorizeApiKey("bearer", key),
  });
}

function ask(text) {
  problem.textContent = text;
  form.hidden = false;
  secret.focus();
}

function dim() {
  document.documentElement.classList.toggle("dark-mode", dark.matches);
}

dim();
dark.addEventListener("change", dim);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  show(secret.value.trim());
});

show("");
