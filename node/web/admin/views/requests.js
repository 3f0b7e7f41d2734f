// Requests: what the node answers, as it does so.

import { el, replace } from "/static/dom.js";
import { count, duration, plural } from "/static/format.js";
import { amount, state, table, time } from "../widgets.js";

const MOST_ROWS = 200;

export default {
  title: "Requests",
  async render(body, view) {
    const { requests } = await view.get("/requests", { limit: 100 });
    const live = el("span", { role: "status" });
    const pause = el("button", { type: "button", "aria-pressed": "false" }, "Pause");
    const rows = table("The last requests, newest first", COLUMNS, {
      empty: "No request yet. They appear here as they are answered.",
    });
    rows.show(requests);
    replace(body,
      el("div", { class: "bar" }, live, pause),
      el("div", { class: "panel flush" }, rows.element));

    const seen = new Set(requests.map(keyOf));
    let paused = false;
    let waiting = [];
    let connected = false;
    const tell = () => {
      if (paused) replace(live, state("idle", `Paused, ${count(waiting.length)} new`));
      else if (connected) replace(live, state("good", "Live"));
      else replace(live, state("warn", "Connecting …"));
    };
    const put = (item) => {
      rows.prepend(item, MOST_ROWS);
    };
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.textContent = paused ? "Go on" : "Pause";
      pause.setAttribute("aria-pressed", String(paused));
      if (!paused) {
        waiting.forEach(put);
        view.say(`${plural(waiting.length, "new request")} shown`);
        waiting = [];
      }
      tell();
    });
    tell();
    view.stream("/requests/stream", {
      message(item) {
        if (seen.has(keyOf(item))) return;
        seen.add(keyOf(item));
        if (seen.size > 4 * MOST_ROWS) seen.delete(seen.values().next().value);
        if (!paused) {
          put(item);
          return;
        }
        waiting.push(item);
        if (waiting.length > MOST_ROWS) waiting.shift();
        tell();
      },
    }, (now) => {
      connected = now === "open";
      tell();
    });
  },
};

/** One id may have several answers, when a request is sent again. */
const keyOf = (item) => `${item.request_id}|${item.at}`;

const COLUMNS = [
  { label: "Time", cell: (item) => time(item.at, { seconds: true }) },
  { label: "Model", head: true, cell: (item) => [
    el("span", { class: "break" }, item.model ?? item.endpoint),
    el("div", { class: "mono small muted break" }, item.request_id),
  ] },
  { label: "Answer", cell: answer },
  { label: "Tokens in, out", num: true, cell: (item) => (item.prompt_tokens === null ? null
    : `${count(item.prompt_tokens)}, ${count(item.completion_tokens)}`) },
  { label: "Charged", num: true, cell: (item) => amount(item.cost_msat) },
  { label: "First byte", num: true, cell: (item) => duration(item.first_byte_s) },
  { label: "In all", num: true, cell: (item) => duration(item.duration_s) },
  { label: "Over", cell: (item) => (item.carriage === "nostr" ? "Nostr" : "HTTP") },
];

function answer(item) {
  if (item.status === 0) return state("idle", "the client left");
  const kind = item.status < 400 ? "good" : item.status < 500 ? "warn" : "bad";
  const code = item.status >= 400 ? el("div", { class: "small muted" }, item.code.replaceAll("_", " ")) : null;
  return [state(kind, String(item.status)), code];
}
