// Relays: where the node is announced and heard, as a map and as a table; announce again.

import { el, replace } from "/static/dom.js";
import { count, plural } from "/static/format.js";
import { busy } from "../dialog.js";
import { relayMap, relayState } from "../relaymap.js";
import { panel, problem, state, table, time } from "../widgets.js";

const REFRESH_S = 5;
const ANNOUNCE_MS = 90_000;

export default {
  title: "Relays",
  async render(body, view) {
    const first = await view.get("/relays");
    const map = relayMap(view.signal);
    const said = el("div", { role: "status" });
    const last = el("p", { class: "muted" });
    const announce = el("button", { type: "button", class: "primary" }, "Announce now");
    const rows = table("Connections to relays", RELAYS, { empty: "No relay.", captionHidden: true });
    const events = table("What each relay said to each event of the last announcement", EVENTS, {
      empty: "Nothing was announced yet.", captionHidden: true,
    });
    const learnt = table("Relays that verified nodes name; only read", LEARNT, { empty: "None yet." });
    const readings = panel("Read as well", learnt.element);
    let shown = "";
    const update = (now) => {
      const text = JSON.stringify(now);
      if (text === shown) return;
      shown = text;
      map.show(now.relays);
      rows.show(now.relays);
      learnt.show(now.learnt);
      readings.hidden = now.learnt.length === 0;
      const { enabled, events: all, last_at: at, d } = now.announcement;
      events.show(all.flatMap((event) => event.relays.map((relay) => ({ ...relay, event }))));
      replace(last, !enabled ? "The node does not announce itself (node.announce)."
        : at ? ["Last announced ", time(at, { relative: true }), " as ", el("code", {}, d), ": ", plural(all.length, "event"), "."]
          : "Not announced since the node was started.");
      announce.hidden = !enabled;
    };
    update(first);
    announce.addEventListener("click", async () => {
      busy(announce, true, "Announcing …");
      replace(said, el("p", {}, "Sending to each relay and waiting for its answer."), el("progress", { "aria-label": "Announcing" }));
      try {
        const answer = await view.send("POST", "/announce", {}, { deadlineMs: ANNOUNCE_MS });
        replace(said, outcome(answer));
        update(await view.get("/relays"));
      } catch (error) {
        replace(said, problem(error));
      } finally {
        busy(announce, false, "Announce now");
      }
    });
    replace(body,
      panel(null, map.element),
      panel("Announcement", last, said, el("p", {}, announce),
        el("details", {}, el("summary", {}, "What each relay said"), events.element)),
      panel("Connections", rows.element),
      readings);
    view.every(REFRESH_S, async () => update(await view.get("/relays")));
  },
};

function outcome(answer) {
  const answers = answer.events.flatMap((event) => event.relays);
  const taken = answers.filter(({ ok }) => ok).length;
  const all = taken === answers.length && taken > 0;
  const note = `${taken} of ${plural(answers.length, "answer")} good.`;
  return el("p", { class: `note ${all ? "good" : "warn"}` }, all ? `Announced: every relay took it (${count(taken)}).`
    : `Announced: ${note} See what each relay said below.`);
}

const RELAYS = [
  { label: "Relay", head: true, cell: (relay) => el("span", { class: "break" }, relay.url.replace(/^wss:\/\//, "")) },
  { label: "State", cell: (relay) => state(...relayState(relay)) },
  { label: "Announcement", cell: announced },
  { label: "OKs", num: true, cell: (relay) => count(relay.oks) },
  { label: "Refused", num: true, cell: (relay) => count(relay.refused) },
  { label: "Last OK", cell: (relay) => time(relay.last_ok_at, { relative: true }) },
  { label: "Trouble", cell: (relay) => {
    const text = [...new Set([relay.trouble, relay.announced?.message, relay.last_error, relay.last_notice])]
      .filter(Boolean).join("; ");
    return text ? el("span", { class: "break small" }, text) : null;
  } },
];

function announced({ announced: what }) {
  if (!what) return null;
  return state(what.ok ? "good" : "warn", `${count(what.accepted)} of ${count(what.total)}`);
}

const LEARNT = [
  { label: "Relay", head: true, cell: ({ url }) => el("span", { class: "break" }, url.replace(/^wss:\/\//, "")) },
  { label: "State", cell: ({ connected }) => (connected ? state("good", "connected") : state("idle", "not connected")) },
  { label: "Events", num: true, cell: ({ events }) => count(events) },
  { label: "Last heard", cell: ({ last_alive_at: at }) => time(at, { relative: true }) },
  { label: "Trouble", cell: ({ trouble, last_error: error }) => {
    const text = trouble || error;
    return text ? el("span", { class: "break small" }, text) : null;
  } },
];

const EVENTS = [
  { label: "Event", head: true, cell: ({ event }) => `kind ${event.kind}${event.d ? ` ${event.d}` : ""}` },
  { label: "Relay", cell: ({ url }) => el("span", { class: "break" }, url) },
  { label: "Answer", cell: ({ ok, message }) => state(ok ? "good" : "bad", ok ? "taken" : message || "refused") },
];
