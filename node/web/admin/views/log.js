// Log: what the node says of itself, without secrets.

import { debounce, el, replace } from "/static/dom.js";
import { count, plural } from "/static/format.js";
import { field, select, textInput } from "../form.js";
import { badge, empty, state, time } from "../widgets.js";

const MOST_LINES = 500;
const LEVELS = ["debug", "info", "warning", "error", "critical"];
const KIND = { warning: "warn", error: "bad", critical: "bad" };

export default {
  title: "Log",
  async render(body, view) {
    const { lines: newestFirst } = await view.get("/log", { limit: MOST_LINES });
    let lines = newestFirst.reverse();
    let waiting = [];
    let paused = false;
    let connected = false;

    const level = select([["debug", "All"], ["info", "Info and above"], ["warning", "Warnings and errors"],
      ["error", "Errors only"]], "info");
    const words = textInput({ type: "search", placeholder: "event, request id, …" });
    const live = el("span", { role: "status" });
    const pause = el("button", { type: "button", "aria-pressed": "false" }, "Pause");
    const list = el("ol", { class: "log" });
    const none = empty("No line matches.");
    replace(body,
      el("div", { class: "filters" }, field("Level", level), field("Words", words)),
      el("div", { class: "bar" }, live, pause),
      el("div", { class: "panel flush tall", role: "region", "aria-label": "Lines of the log, newest first", tabindex: "0" },
        list, none));

    const matches = (line) => LEVELS.indexOf(line.level) >= LEVELS.indexOf(level.value)
      && (!words.value || textOf(line).toLowerCase().includes(words.value.toLowerCase()));
    const settle = () => (none.hidden = list.childElementCount > 0);
    const draw = () => {
      replace(list, lines.filter(matches).map(drawn).reverse());
      settle();
    };
    const put = (line) => {
      lines.push(line);
      if (lines.length > MOST_LINES) lines = lines.slice(-MOST_LINES);
      if (!matches(line)) return;
      list.prepend(drawn(line));
      while (list.childElementCount > MOST_LINES) list.lastElementChild.remove();
      settle();
    };
    const tell = () => {
      if (paused) replace(live, state("idle", `Paused, ${count(waiting.length)} new`));
      else if (connected) replace(live, state("good", "Live"));
      else replace(live, state("warn", "Connecting …"));
    };
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.textContent = paused ? "Go on" : "Pause";
      pause.setAttribute("aria-pressed", String(paused));
      if (!paused) waiting.splice(0).forEach(put);
      tell();
    });
    const filter = () => {
      draw();
      view.say(plural(list.childElementCount, "line"));
    };
    level.addEventListener("change", filter);
    words.addEventListener("input", debounce(filter, 300));
    draw();
    tell();
    view.stream("/log/stream", {
      message(line) {
        if (!paused) {
          put(line);
          return;
        }
        waiting.push(line);
        if (waiting.length > MOST_LINES) waiting.shift();
        tell();
      },
    }, (now) => {
      connected = now === "open";
      tell();
    });
  },
};

const fieldsOf = (line) => Object.entries(line.fields);

function valueText(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

const textOf = (line) =>
  [line.level, line.event, ...fieldsOf(line).flatMap(([name, value]) => [name, valueText(value)])].join(" ");

function drawn(line) {
  return el("li", {},
    el("div", { class: "row" },
      time(line.at, { seconds: true }),
      badge(line.level, KIND[line.level] ?? ""),
      el("strong", { class: "break" }, line.event)),
    el("p", { class: "mono break" }, fieldsOf(line).map(([name, value]) =>
      [el("span", { class: "muted" }, `${name}=`), `${valueText(value)}  `])));
}
