// The frame of the dashboard: session, navigation, one view at a time, the state of the connection.

import { byId, el, replace } from "/static/dom.js";
import { ask, connect, hasSession, send, stream } from "./net.js";
import { askPassword, signInPage } from "./session.js";
import { problem } from "./widgets.js";
import accounts from "./views/accounts.js";
import balance from "./views/balance.js";
import earnings from "./views/earnings.js";
import keys from "./views/keys.js";
import log from "./views/log.js";
import models from "./views/models.js";
import operations from "./views/operations.js";
import overview from "./views/overview.js";
import pay from "./views/pay.js";
import relays from "./views/relays.js";
import requests from "./views/requests.js";
import settings from "./views/settings.js";
import upstreams from "./views/upstreams.js";

const GROUPS = [
  ["Now", { overview, requests, log }],
  ["Money", { earnings, balance, accounts, pay, operations }],
  ["Market", { models, upstreams, relays }],
  ["Node", { settings, keys }],
];
const VIEWS = Object.assign({}, ...GROUPS.map(([, views]) => views));
const START = "overview";

const main = byId("main");
const nav = byId("nav");
const menu = byId("menu");
const signOut = byId("sign-out");
let leaving = new AbortController();
let failed = false;

/** Tells those who listen instead of look what came of an action. */
function say(text) {
  const said = byId("said");
  said.textContent = "";
  setTimeout(() => (said.textContent = text), 50); // the same words twice are told twice
}

/** "#/accounts/7?x=1" → the view's name, what follows it, and its parameters. */
function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  const known = Object.hasOwn(VIEWS, name);
  return {
    name: known ? name : START,
    rest: known ? rest.map(decoded) : [],
    query: new URLSearchParams(query),
  };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Puts the view of the address in place. */
async function show({ focus = true } = {}) {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const { name, rest, query } = route();
  const view = VIEWS[name];
  mark(name);
  const heading = el("h1", { tabindex: "-1" }, view.title);
  const body = el("div", { class: "view" }, el("p", { class: "loading muted" }, "Loading…"));
  replace(main, heading, body);
  main.setAttribute("aria-busy", "true");
  document.title = `${view.title} – ${byId("node-name").textContent}`;
  scrollTo(0, 0);
  if (focus) heading.focus();
  failed = false;
  try {
    await view.render(body, context(signal, { rest, query, heading }));
  } catch (error) {
    if (signal.aborted) return;
    failed = true;
    const again = el("button", { type: "button", onclick: () => show() }, "Try again");
    replace(body, problem(error), el("p", {}, again));
  }
  if (!signal.aborted) main.removeAttribute("aria-busy");
}

/** What a view is given: all of it ends when the view is left. */
function context(signal, more) {
  return {
    ...more,
    signal,
    say,
    reload: show,
    get: (path, query = {}) => ask(path, { query, signal }),
    /** Calls that change something are not cut off by leaving the view. */
    send: (method, path, body, options) => send(method, path, body, options),
    stream: (path, handlers, state = () => {}) => stream(path, handlers, state, signal),
    /** Runs again and again while the page is seen; a failure is the connection's matter. */
    every(seconds, run) {
      const timer = setInterval(async () => {
        if (document.hidden || signal.aborted) return;
        try {
          await run();
        } catch {
          // the frame tells when the node is gone; what is shown stays
        }
      }, 1_000 * seconds);
      signal.addEventListener("abort", () => clearInterval(timer));
    },
  };
}

function drawNav() {
  const groups = GROUPS.map(([group, views]) => {
    const id = `nav-${group.toLowerCase()}`;
    const links = Object.entries(views).map(([name, view]) =>
      el("li", {}, el("a", { href: `#/${name}`, dataset: { view: name } }, view.title)));
    return [el("h2", { id }, group), el("ul", { "aria-labelledby": id }, links)];
  });
  replace(byId("views"), groups);
}

function mark(name) {
  for (const link of nav.querySelectorAll("a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  openMenu(false);
}

function openMenu(open) {
  menu.setAttribute("aria-expanded", String(open));
  nav.classList.toggle("open", open);
}

function connection(answers) {
  const bar = byId("connection");
  if (!answers) {
    replace(bar, el("span", { class: "pulse", "aria-hidden": "true" }), "Connection lost, trying again …");
    return;
  }
  replace(bar);
  say("The connection is back");
  if (failed) show({ focus: false });
}

function frameFor(signedIn) {
  nav.hidden = menu.hidden = signOut.hidden = !signedIn;
  document.body.classList.toggle("signed-out", !signedIn);
}

async function enter({ focus }) {
  frameFor(true);
  drawNav();
  mark(route().name);
  ask("/overview").then(({ name }) => {
    byId("node-name").textContent = name;
    document.title = `${VIEWS[route().name].title} – ${name}`;
  }).catch(() => {}); // the view says what is wrong
  await show({ focus });
}

async function begin() {
  let signedIn;
  try {
    signedIn = await hasSession();
  } catch (error) {
    const again = el("button", { type: "button", onclick: () => location.reload() }, "Try again");
    replace(main, el("h1", {}, "Dashboard"), problem(error), el("p", {}, again));
    return;
  }
  if (!signedIn) {
    frameFor(false);
    await signInPage(main);
    await enter({ focus: true });
  } else {
    await enter({ focus: false });
  }
}

let asking = null;
/** However many calls find the session ended, the password is asked for once. */
function signInOnce() {
  asking ??= askPassword().finally(() => (asking = null));
  return asking;
}

connect(signInOnce, connection);
addEventListener("hashchange", () => {
  if (location.hash === "#main") return; // the skip link
  if (!nav.hidden) show();
});
byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view
  (main.querySelector("h1") ?? main).focus();
});
menu.addEventListener("click", () => openMenu(menu.getAttribute("aria-expanded") !== "true"));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !nav.classList.contains("open")) return;
  openMenu(false);
  menu.focus();
});
nav.addEventListener("click", (event) => {
  if (event.target.closest("a[aria-current]")) show(); // the view that is there: anew
});
signOut.addEventListener("click", async () => {
  signOut.disabled = true;
  try {
    await send("POST", "/logout");
    leaving.abort();
    location.hash = "";
    location.reload();
  } catch (error) {
    say(error.message);
    signOut.disabled = false;
  }
});
begin();
