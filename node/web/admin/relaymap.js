// The relays around the node in SVG. A state is told by shape, by the line and in words; the table
// below the map has the same for screen readers.

import { clip } from "/static/format.js";
import { el, replace, svg } from "/static/dom.js";

const NARROW_PX = 560;
const ROW_PX = 64;
const MOST = 24;

/** The state of a relay: [kind, words]. */
export function relayState(relay) {
  if (!relay.connected) return ["bad", "not connected"];
  if (relay.trouble) return ["warn", "in trouble"];
  if (relay.announced && !relay.announced.accepted) return ["warn", "refuses the announcement"];
  return ["good", "connected"];
}

/** @returns {{element: HTMLElement, show: function(Array<Object>): void}} */
export function relayMap(signal) {
  const canvas = el("div", { class: "relay-map" });
  let relays = [];
  let width = 0;
  const draw = () => {
    if (width) replace(canvas, drawn(relays, width));
  };
  const watch = new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now === width) return;
    width = now;
    draw();
  });
  watch.observe(canvas);
  signal.addEventListener("abort", () => watch.disconnect());
  return {
    element: canvas,
    show(now) {
      relays = now.slice(0, MOST);
      draw();
    },
  };
}

function drawn(relays, width) {
  const places = width < NARROW_PX ? column(relays, width) : ring(relays, width);
  const good = relays.filter((relay) => relayState(relay)[0] === "good").length;
  const about = `${good} of ${relays.length} relays are connected and without trouble. The table “Connections” has the same.`;
  return svg("svg", {
    width, height: places.height, viewBox: `0 0 ${width} ${places.height}`, role: "img",
    "aria-labelledby": "relay-map-title relay-map-desc",
  },
    svg("title", { id: "relay-map-title" }, "Relays around the node"),
    svg("desc", { id: "relay-map-desc" }, about),
    relays.map((relay, i) => line(relay, places.centre, places.relays[i])),
    relays.map((relay, i) => node(relay, places.relays[i])),
    ours(places.centre));
}

/** In a circle, where there is room; those at the sides have their text beside them. */
function ring(relays, width) {
  const few = relays.length <= 2;
  const high = few ? 140 : Math.max(300, Math.min(460, 60 * relays.length));
  const centre = { x: width / 2, y: high / 2 };
  const wide = Math.min(width / 2 - 215, 300);
  const places = relays.map((_, i) => {
    const angle = few ? Math.PI * i : (2 * Math.PI * (i + 0.5)) / relays.length - Math.PI / 2;
    const x = centre.x + wide * Math.cos(angle);
    const y = centre.y + (high / 2 - 44) * Math.sin(angle);
    const right = Math.cos(angle) > -0.01;
    return { x, y, textX: x + (right ? 20 : -20), anchor: right ? "start" : "end", chars: 22 };
  });
  return { centre, relays: places, height: high };
}

/** One below the other, where there is not. */
function column(relays, width) {
  const high = Math.max(ROW_PX * relays.length, ROW_PX) + 16;
  const chars = Math.floor((width - 140) / 8.7);
  const places = relays.map((_, i) => ({
    x: 116, y: 8 + ROW_PX * (i + 0.5), textX: 136, anchor: "start", chars,
  }));
  return { centre: { x: 30, y: high / 2 }, relays: places, height: high };
}

function line(relay, from, to) {
  const [kind] = relayState(relay);
  const middle = (from.x + to.x) / 2;
  const d = `M${from.x} ${from.y}C${middle} ${from.y} ${middle} ${to.y} ${to.x} ${to.y}`;
  return svg("path", { class: `link ${kind}`, d });
}

/** A disc is good, a triangle in trouble, a square with a cross not connected. */
const SHAPES = {
  good: (x, y) => [
    svg("circle", { cx: x, cy: y, r: 11 }),
    svg("path", { class: "sign", d: `M${x - 5} ${y}l3.500 4 6.500-7` }),
  ],
  warn: (x, y) => [
    svg("path", { d: `M${x} ${y - 13}l13 23h-26Z` }),
    svg("path", { class: "sign", d: `M${x} ${y - 5}v7m0 3v1.500` }),
  ],
  bad: (x, y) => [
    svg("rect", { x: x - 10, y: y - 10, width: 20, height: 20, rx: 2 }),
    svg("path", { class: "sign", d: `M${x - 4.5} ${y - 4.5}l9 9m0-9-9 9` }),
  ],
};

function node(relay, { x, y, textX, anchor, chars }) {
  const [kind, words] = relayState(relay);
  const { announced } = relay;
  const taken = announced?.accepted ? `, ${announced.accepted} of ${announced.total} taken` : "";
  const host = relay.url.replace(/^wss?:\/\//, "").replace(/\/$/, "");
  return svg("g", { class: `relay ${kind}` },
    svg("title", {}, `${relay.url}: ${words}${taken}`),
    SHAPES[kind](x, y),
    svg("text", { class: "name", x: textX, y: y - 2, "text-anchor": anchor }, clip(host, chars)),
    svg("text", { x: textX, y: y + 15, "text-anchor": anchor }, clip(words + taken, Math.floor(1.2 * chars) + 2)));
}

function ours({ x, y }) {
  return svg("g", { class: "ours" },
    svg("circle", { cx: x, cy: y, r: 24 }),
    svg("text", { x, y: y + 5, "text-anchor": "middle" }, "us"));
}
