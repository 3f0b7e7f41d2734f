// Elements made of data. Whatever comes from outside becomes text, never markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element of HTML.
 *
 * @param {string} tag
 * @param {Object<string, unknown>} [attributes] functions are event listeners (`onclick`), booleans
 *   are there or not, null and undefined are left out, `dataset` is an object, `value`, `checked`
 *   and the like that begin with a dot (`.value`) are properties.
 * @param {...(Node|string|number|null|undefined|Array)} children texts become text nodes.
 * @returns {HTMLElement}
 */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same of SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.replace(/^on/, ""), value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name.startsWith(".")) node[name.slice(1)] = value;
    else if (name === "href") node.setAttribute(name, localOrWeb(String(value)));
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
}

/** What stands in a node is replaced by these. */
export function replace(node, ...children) {
  node.replaceChildren();
  append(node, children);
  return node;
}

/**
 * Lets `change` make what stands in a node anew without taking the focus from who works by keyboard:
 * it goes on to the element with the same `data-key`, if there is one.
 */
export function keepFocus(node, change) {
  const active = document.activeElement;
  const key = node.contains(active) ? active.dataset.key : undefined;
  change();
  if (key !== undefined) node.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

/** The element with this id; it must be there. */
export function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`no element #${id}`);
  return found;
}

/** The URL if it leads to the web, else null. */
export function webUrl(text) {
  try {
    const url = new URL(text);
    return url.protocol === "https:" || url.protocol === "http:" ? url.href : null;
  } catch {
    return null;
  }
}

function localOrWeb(text) {
  return /^(#|\?|\/(?!\/))/.test(text) ? text : (webUrl(text) ?? "#");
}

/** A URL that somebody else wrote: a link if it leads to the web, else only its text. */
export function outside(text) {
  const url = webUrl(text);
  if (url === null) return el("span", { class: "break" }, text);
  const rel = "noopener noreferrer nofollow";
  return el("a", { href: url, rel, target: "_blank", class: "break" }, text);
}

/**
 * A button that copies a text and says that it did.
 *
 * @param {string} text
 * @param {string} [label] what the button says.
 * @param {string} [about] what is copied, for those who do not see the surroundings.
 */
export function copyButton(text, label = "Copy", about = "") {
  const said = el("span", { "aria-live": "polite" }, label);
  const hidden = about ? el("span", { class: "visually-hidden" }, ` ${about}`) : null;
  const button = el("button", { type: "button", class: "small" }, said, hidden);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      said.textContent = "Copied";
    } catch {
      said.textContent = "Select and copy it yourself"; // not allowed without https
    }
    setTimeout(() => (said.textContent = label), 2_000);
  });
  return button;
}

/** Calls `run` once, when nothing was asked for `delayMs`. */
export function debounce(run, delayMs) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...values), delayMs);
  };
}

/**
 * Says something to those who listen instead of look; gathers what comes within a second.
 *
 * @param {HTMLElement} region an element with aria-live="polite".
 */
export function announcer(region) {
  return debounce((text) => (region.textContent = text), 1_000);
}
