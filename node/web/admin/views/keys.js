// Keys: who the node is on Nostr, and becoming somebody else.

import { copyButton, el, replace } from "/static/dom.js";
import { formDialog, openDialog } from "../dialog.js";
import { field, setProblem, textInput } from "../form.js";
import { facts, panel, problem } from "../widgets.js";

const TYPED_CHARS = 6;

export default {
  title: "Keys",
  async render(body, view) {
    const keys = await view.get("/keys");
    const rotate = el("button", { type: "button", class: "danger", disabled: !keys.can_rotate }, "Make a new key …");
    rotate.addEventListener("click", () => askRotate(keys, view));
    replace(body,
      panel("The node's key",
        facts(["Public key", key(keys.npub, "the public key")], ["Secret key", el("code", { class: "break" }, keys.reference)]),
        el("p", { class: "muted" }, "Clients know the node by this key. The secret key never leaves the node.")),
      panel("Make a new key",
        el("p", {}, "For when the secret key may have become known. The old file is kept as a backup. What it means:"),
        el("ul", {}, keys.means.map((text) => el("li", {}, sentence(text)))),
        keys.can_rotate ? null : el("p", { class: "note warn" },
          "The key is not in a file that the node could write. Make one with ", el("code", {}, "nodestr keys generate"),
          ", put it where ", el("code", {}, "node.secret_key"), " points and restart."),
        el("p", {}, rotate)));
  },
};

const key = (npub, about) => el("span", { class: "row" }, el("code", { class: "break" }, npub), copyButton(npub, "Copy", about));

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

async function askRotate({ npub }, view) {
  const end = npub.slice(-TYPED_CHARS);
  const typed = textInput({ required: true, maxlength: "80", autocapitalize: "none", autofocus: true });
  const holder = field(`Type the last ${TYPED_CHARS} characters of the public key: ${end}`, typed);
  const answer = await formDialog({
    title: "Make a new key?",
    content: [
      el("p", {}, "To all its clients the node becomes ", el("strong", {}, "somebody else"), "."),
      holder,
    ],
    action: "Make a new key",
    doing: "Making it …",
    danger: true,
    narrow: true,
    told: (error) => (error instanceof NotTyped ? null : problem(error)),
    act: async () => {
      setProblem(holder, "");
      if (typed.value.trim() !== end) {
        setProblem(holder, `That is not “${end}”. Nothing was changed.`);
        throw new NotTyped();
      }
      return view.send("POST", "/keys/rotate", { confirm: npub });
    },
  });
  if (answer === undefined) return;
  view.say("A new key was made");
  const done = el("button", { type: "button", class: "primary" }, "Done");
  const dialog = openDialog("A new key was made", [
    el("p", { class: "note warn" }, "Restart the node: until then it goes on with the old key."),
    facts(
      ["New public key", key(answer.npub, "the new public key")],
      ["File", el("code", { class: "break" }, answer.file)],
      ["Backup of the old key", el("code", { class: "break" }, answer.backup)]),
    el("div", { class: "row actions" }, done),
  ]);
  done.addEventListener("click", dialog.close);
  await dialog.closed;
}

class NotTyped extends Error {}
