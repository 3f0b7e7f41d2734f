// The operator's choice of colours, applied before anything is painted: therefore not a module.
// The pages' style sheet follows the system; a choice turns its rule about that on or off.
(() => {
  "use strict";
  const KEY = "nodestr.theme";
  const CHOICES = ["system", "light", "dark"];

  function stored() {
    try {
      const choice = localStorage.getItem(KEY);
      return CHOICES.includes(choice) ? choice : "system";
    } catch {
      return "system"; // the browser keeps nothing
    }
  }

  function darkRules() {
    const rules = [];
    for (const sheet of document.styleSheets) {
      for (const rule of sheet.cssRules) {
        if (!(rule instanceof CSSMediaRule)) continue;
        if (rule.media.mediaText.includes("prefers-color-scheme")) rules.push(rule);
      }
    }
    return rules;
  }

  const rules = darkRules();
  const media = { system: "(prefers-color-scheme: dark)", light: "not all", dark: "all" };

  function apply(choice) {
    for (const rule of rules) rule.media.mediaText = media[choice];
    document.documentElement.style.colorScheme = choice === "system" ? "light dark" : choice;
  }

  function choose(choice) {
    apply(choice);
    try {
      localStorage.setItem(KEY, choice);
    } catch {
      // it holds until the page is left
    }
  }

  apply(stored());
  document.addEventListener("DOMContentLoaded", () => {
    const select = document.getElementById("theme");
    select.value = stored();
    select.addEventListener("change", () => choose(select.value));
  });
})();
