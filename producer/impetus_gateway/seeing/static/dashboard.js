// The dashboard: shows what /v1/fleet/events says, and tries embeddings and chats. What comes from elsewhere is only ever
// set as text, never as markup.
"use strict";

const byId = (id) => document.getElementById(id);
const KEY = "impetus-key";
const AGAIN_MS = [500, 1000, 2000, 5000];

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function ask(path, { method = "GET", body, signal } = {}) {
  const answer = await fetch(path, {
    method, signal,
    headers: headers(body === undefined ? {} : { "Content-Type": "application/json" }),
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!answer.ok) {
    const said = await answer.json().catch(() => null);
    const error = new Error(said?.error?.message ?? `the gateway answered ${answer.status}`);
    error.status = answer.status;
    throw error;
  }
  return answer;
}

// The data of each server-sent event of an answer.
async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data) yield data;
    }
  }
}

// ---- what is shown

function element(kind, text, className) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// Rows keep their places in the page, and a button its focus, as long as what they are about is there.
function fill(table, items, keyOf, cellsOf, nothing) {
  const body = table.tBodies[0];
  const labels = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const there = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const rows = items.map((item) => {
    const key = keyOf(item);
    const row = there.get(key) ?? element("tr");
    row.dataset.key = key;
    cellsOf(item).forEach((cell, at) => {
      const td = row.cells[at] ?? row.insertCell();
      td.dataset.label = labels[at];
      const said = JSON.stringify([cell.text, cell.note, cell.kind, cell.button]);
      if (td.dataset.said === said) return;
      td.dataset.said = said;
      td.className = cell.kind ?? "";
      const inner = element(cell.code ? "code" : "span", cell.text);
      if (cell.title) inner.title = cell.title;
      if (cell.note) inner.append(element("small", cell.note));
      if (cell.progress) inner.append(bar(cell.progress));
      td.replaceChildren(inner);
      if (cell.button) {
        const button = element("button", cell.button);
        button.type = "button";
        button.setAttribute("aria-label", `${cell.button} ${key}`);
        button.addEventListener("click", () => cell.act(button));
        td.replaceChildren(button);
      }
    });
    return row;
  });
  if (!rows.length) {
    const row = element("tr");
    const td = row.insertCell();
    td.colSpan = labels.length;
    td.className = "none";
    td.textContent = nothing;
    rows.push(row);
  }
  const same = rows.length === body.rows.length && rows.every((row, at) => body.rows[at] === row);
  if (!same) body.replaceChildren(...rows);
}

function bar(batch) {
  const made = element("progress");
  made.max = Math.max(1, batch.total);
  made.value = batch.completed + batch.failed;
  made.setAttribute("aria-label", `Progress of ${batch.id}`);
  return made;
}

const number = (value) => (value === null || value === undefined ? "?" : value.toLocaleString("en"));
const seconds = (value) => (value === null ? "" : value < 120 ? `${value.toFixed(value < 10 ? 1 : 0)} s` : `${Math.round(value / 60)} min`);
const time = (written) => (written ? new Date(written).toLocaleTimeString() : "");
const short = (id) => (id.length > 12 ? `${id.slice(0, 8)}…` : id);
const KINDS = { serving: "good", silent: "bad", loading: "wait", suspended: "wait", "standing by": "wait" };

async function act(button, done, path, method) {
  button.disabled = true;
  try {
    await ask(path, { method });
    byId("said").textContent = done;
  } catch (error) {
    byId("said").textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

function show(said) {
  if (!said.reached) {
    state("The queue's server is not to be reached.", "bad");
    return;
  }
  const serving = said.workers.filter((worker) => worker.state === "serving").length;
  state(said.suspended ? "The workers are suspended: they take no jobs." : `${serving} of ${said.workers.length} workers serve.`,
    said.suspended ? "wait" : "");
  const suspend = byId("suspend");
  suspend.hidden = false;
  suspend.dataset.suspended = said.suspended;
  suspend.textContent = said.suspended ? "Let workers go on" : "Suspend workers";
  fill(byId("queues"), said.queues, (queue) => queue.name, (queue) => [
    { text: queue.name, note: queue.attended ? "" : "no worker listens" },
    { text: number(queue.waiting), kind: "n" },
    { text: seconds(queue.oldest_s), kind: "n" },
    { text: number(queue.running), kind: "n" },
    { text: number(queue.failed), kind: queue.failed ? "n bad" : "n" },
  ], "There are no queues.");
  fill(byId("workers"), said.workers, (worker) => worker.name, (worker) => [
    { text: worker.name, note: worker.role },
    { text: worker.state, note: worker.why, kind: KINDS[worker.state] },
    { text: worker.machine || "?" },
    { text: worker.device || "?", note: worker.engine_deaths ? `its engine died ${worker.engine_deaths} times` : "" },
    { text: worker.model || "?" },
    { text: number(worker.jobs), kind: "n" },
    { text: worker.per_s.toFixed(1), kind: "n" },
  ], "No worker is there. Start one: impetus-worker run");
  fill(byId("jobs"), said.jobs, (job) => job.id, (job) => [
    { text: short(job.id), title: job.id, code: true, note: job.endpoint },
    { text: job.status },
    { text: job.queue },
    { text: job.owner || "a producer" },
    { text: time(job.at) },
    { button: "Cancel", act: (button) => act(button, `${job.id} was cancelled.`, `/v1/jobs/${encodeURIComponent(job.id)}`, "DELETE") },
  ], "Nothing waits and nothing runs.");
  fill(byId("batches"), said.batches, (batch) => batch.id, (batch) => [
    { text: short(batch.id), title: batch.id, code: true, note: batch.endpoint },
    { text: batch.status },
    { text: `${number(batch.completed + batch.failed)} of ${number(batch.total)}`, progress: batch },
    { text: number(batch.failed), kind: batch.failed ? "n bad" : "n" },
    { text: batch.owner },
    batch.over ? { text: "" }
      : { button: "Cancel", act: (button) => act(button, `${batch.id} is being cancelled.`, `/v1/batches/${batch.id}/cancel`, "POST") },
  ], "There are none.");
  fill(byId("failures"), said.failures, (job) => job.id, (job) => [
    { text: short(job.id), title: job.id, code: true },
    { text: job.sentence || "it left no reason" },
    { text: job.queue },
    { text: job.owner || "a producer" },
    { text: time(job.at) },
    { button: "Retry", act: (button) => act(button, `${job.id} is tried again.`, `/v1/jobs/${encodeURIComponent(job.id)}/retry`, "POST") },
  ], "None that is kept.");
  for (const name of ["jobs", "texts", "tokens"]) chart(name, said.rates.map((rate) => rate[name]));
}

function chart(name, values) {
  const recent = values.slice(-5);
  const now = recent.reduce((sum, value) => sum + value, 0) / Math.max(1, recent.length);
  byId(`${name}-now`).textContent = now.toFixed(now < 10 ? 1 : 0);
  const most = Math.max(1, ...values);
  const points = values.map((value, at) => `${180 - values.length + at},${(38 - (36 * value) / most).toFixed(1)}`);
  document.querySelector(`#${name}-chart polyline`).setAttribute("points", points.join(" "));
}

function state(text, kind = "") {
  const shown = byId("state");
  if (shown.textContent !== text) shown.textContent = text;
  shown.className = kind;
}

async function follow() {
  for (let tries = 0; ; ) {
    try {
      const answer = await ask("/v1/fleet/events");
      byId("key-form").hidden = true;
      for await (const data of eventsOf(answer)) {
        tries = 0;
        show(JSON.parse(data));
      }
    } catch (error) {
      if (error.status === 401 || error.status === 403) {
        byId("key-said").textContent = sessionStorage.getItem(KEY) ? error.message : "";
        byId("key-form").hidden = false;
        state("Locked.");
        return;
      }
    }
    state("The gateway is not to be reached; trying again…", "bad");
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS[Math.min(tries++, AGAIN_MS.length - 1)]));
  }
}

byId("key-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value);
  byId("key").value = "";
  follow();
});

byId("suspend").addEventListener("click", () => {
  const suspended = byId("suspend").dataset.suspended === "true";
  act(byId("suspend"), suspended ? "The workers go on." : "The workers finish what they run and take nothing.",
    suspended ? "/v1/fleet/resume" : "/v1/fleet/suspend", "POST");
});

// ---- what is tried

byId("alike-form").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  const shown = byId("alike");
  shown.textContent = "…";
  try {
    const answer = await ask("/v1/embeddings", { method: "POST", body: { input: [byId("one").value, byId("other").value] } });
    const [a, b] = (await answer.json()).data.map((each) => each.embedding);
    const dot = (x, y) => x.reduce((sum, value, at) => sum + value * y[at], 0);
    shown.textContent = `cosine ${(dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b))).toFixed(3)}`;
  } catch (error) {
    shown.textContent = error.message;
  }
});

let messages = [];
let asking = null;

function line(text, className) {
  const made = element("p", text, className);
  byId("talk").append(made);
  return made;
}

byId("chat-form").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  if (asking) return;
  const question = byId("question").value;
  byId("question").value = "";
  line(`You: ${question}`);
  messages.push({ role: "user", content: question });
  asking = new AbortController();
  byId("send").disabled = true;
  byId("stop").disabled = false;
  let thought = null;
  let spoken = null;
  let text = "";
  try {
    const body = { messages, stream: true };
    const answer = await ask("/v1/chat/completions", { method: "POST", body, signal: asking.signal });
    for await (const data of eventsOf(answer)) {
      if (data === "[DONE]") break;
      const said = JSON.parse(data);
      if (said.error) throw new Error(said.error.message);
      const delta = said.choices[0]?.delta ?? {};
      if (delta.reasoning_content) {
        thought ??= line("", "thought");
        thought.textContent += delta.reasoning_content;
      }
      if (delta.content) {
        text += delta.content;
        spoken ??= line("");
        spoken.textContent = text;
      }
      byId("talk").scrollTop = byId("talk").scrollHeight;
    }
  } catch (error) {
    line(error.name === "AbortError" ? "Stopped." : error.message, "bad");
  } finally {
    if (text) messages.push({ role: "assistant", content: text });
    else messages.pop();
    asking = null;
    byId("send").disabled = false;
    byId("stop").disabled = true;
  }
});

byId("stop").addEventListener("click", () => asking?.abort());
byId("anew").addEventListener("click", () => {
  asking?.abort();
  messages = [];
  byId("talk").replaceChildren();
  byId("question").focus();
});
byId("question").addEventListener("keydown", (key) => {
  if (key.key === "Enter" && !key.shiftKey && !key.isComposing) {
    key.preventDefault();
    byId("chat-form").requestSubmit();
  }
});

follow();
