// Settings: what applies, where each value comes from, changing it here and undoing that.

import { debounce, el, replace } from "/static/dom.js";
import { plural } from "/static/format.js";
import { textInput } from "../form.js";
import { changeNote, editSetting, shownValue } from "../settingform.js";
import { badge, keepFocus } from "../widgets.js";

const ORIGINS = {
  default: ["default", ""],
  file: ["from the file", ""],
  environment: ["from the environment", ""],
  credential: ["from a credential", ""],
  override: ["changed here", "accent"],
};

export default {
  title: "Settings",
  async render(body, view) {
    const words = textInput({ type: "search", "aria-label": "Find a setting", placeholder: "Find a setting" });
    const said = el("div", { role: "status" });
    const waiting = el("div");
    const list = el("div");
    let document = null;
    let opened = new Set(view.rest[0] ? [view.rest[0]] : []);
    const load = async () => {
      document = await view.get("/settings");
      replace(waiting, waitingNote(document.needs_restart ?? []));
      draw();
    };
    const edit = async (setting) => {
      const answer = await editSetting(setting, view);
      if (!answer) return;
      replace(said, changeNote(answer));
      await load();
    };
    const draw = () => {
      const part = words.value.trim().toLowerCase();
      for (const details of list.querySelectorAll("details")) {
        if (!part || !words.dataset.searched) {
          if (details.open) opened.add(details.dataset.name);
          else opened.delete(details.dataset.name);
        }
      }
      words.dataset.searched = part;
      const groups = groupsOf(document);
      let found = 0;
      keepFocus(list, () => replace(list, groups.map(({ name, settings }) => {
        const matching = settings.filter((setting) =>
          !part || `${name}.${setting.key} ${setting.about}`.toLowerCase().includes(part));
        found += matching.length;
        if (!matching.length) return null;
        const changed = settings.filter(({ origin }) => origin === "override").length;
        return el("details", { class: "section", open: part !== "" || opened.has(name), dataset: { name } },
          el("summary", {}, el("h2", {}, name), " ", changed ? badge(`${changed} changed here`, "accent") : null),
          el("div", {}, matching.map((setting) => drawn(setting, edit))));
      }), found ? null : el("p", { class: "empty" }, "No setting matches.")));
      return found;
    };
    words.addEventListener("input", debounce(() => view.say(plural(draw(), "setting")), 200));
    await load();
    replace(body, el("p", { class: "lead" },
      "Changes made here go over the configuration file, the environment and credentials, and can be undone one by one."),
    el("div", { class: "bar" }, words), waiting, said, list);
  },
};

function waitingNote(keys) {
  if (!keys.length) return null;
  return el("p", { class: "note warn" }, "These wait for a restart: ", keys.map((key) => [el("code", {}, key), " "]));
}

/** Sections in their order; each entry of a list is a group of its own. */
function groupsOf({ settings, lists }) {
  return Object.entries(settings).flatMap(([section, values]) => {
    if (!Object.hasOwn(lists, section)) return [group(section, [section], values)];
    return Object.entries(values).map(([entry, fields]) =>
      group(`${section}: ${entry}`, [section, entry], fields));
  });
}

function group(name, path, fields) {
  const settings = Object.entries(fields).map(([key, setting]) => ({ ...setting, key, path: [...path, key] }));
  return { name, settings };
}

function drawn(setting, edit) {
  const [origin, kind] = ORIGINS[setting.origin] ?? [setting.origin, ""];
  const name = setting.path.join(".");
  return el("div", { class: "setting" },
    el("h3", {}, setting.key),
    el("div", { class: "side" },
      badge(origin, kind),
      setting.fixed ? badge("cannot be changed here") : badge(setting.live ? "applies at once" : "after a restart"),
      setting.fixed ? null : el("button", { type: "button", class: "small", onclick: () => edit(setting) },
        "Edit", el("span", { class: "visually-hidden" }, ` ${name}`))),
    el("p", { class: "value" }, shownValue(setting.value)),
    el("p", { class: "about" }, setting.about));
}
