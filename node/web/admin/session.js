// Signing in: a page of its own at first, a dialog over the view when the session ended meanwhile.

import { el, replace } from "/static/dom.js";
import { field, passwordInput } from "./form.js";
import { send } from "./net.js";
import { errorText } from "./widgets.js";

/** Fills `main` with the form; resolves once the password was right. */
export function signInPage(main) {
  return new Promise((resolve) => {
    const form = signInForm(resolve);
    const panel = el("div", { class: "panel sign-in" },
      el("h1", {}, "Sign in"),
      el("p", { class: "muted" }, "With the password that ", el("code", {}, "nodestr init"), " or ",
        el("code", {}, "nodestr admin password"), " told you."),
      form);
    replace(main, panel);
    document.title = "Sign in – Dashboard";
    form.querySelector("input[type=password]").focus();
  });
}

/** The same over what is shown, which stays; resolves once the password was right. */
export function askPassword() {
  return new Promise((resolve) => {
    const dialog = el("dialog", { class: "narrow", "aria-labelledby": "expired" });
    const form = signInForm(() => {
      dialog.close();
      dialog.remove();
      resolve();
    });
    dialog.append(el("div", { class: "inside" },
      el("h2", { id: "expired" }, "Your session has ended"),
      el("p", { class: "muted" }, "Sign in again and go on where you were."),
      form));
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.body.append(dialog);
    dialog.showModal();
    form.querySelector("input[type=password]").focus();
  });
}

function signInForm(done) {
  const password = passwordInput();
  const button = el("button", { type: "submit", class: "primary" }, "Sign in");
  const said = el("p", { class: "problem", role: "alert" });
  const form = el("form", { class: "stack", novalidate: true },
    el("input", {
      type: "text", class: "visually-hidden", autocomplete: "username", value: "operator",
      tabindex: "-1", "aria-hidden": "true", readonly: true,
    }),
    field("Password", password), said, el("div", { class: "row" }, button));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    said.textContent = "";
    if (!password.value) {
      said.textContent = "Enter the password.";
      password.focus();
      return;
    }
    button.disabled = true;
    button.textContent = "Signing in …";
    try {
      await send("POST", "/login", { password: password.value });
      password.value = "";
      done();
    } catch (error) {
      said.textContent = error.status === 401 ? "That is not the password." : errorText(error);
      password.setAttribute("aria-invalid", "true");
      password.select();
    } finally {
      button.disabled = false;
      button.textContent = "Sign in";
    }
  });
  return form;
}
