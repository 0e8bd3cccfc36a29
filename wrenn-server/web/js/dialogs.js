// Dialogs, forms and short messages.

import { fill, freshId, h } from "./dom.js";
import { icon } from "./icons.js";

/** A labelled field. `hint` stands below it and is read with it. */
export function field(label, input, hint) {
  const id = input.id || (input.id = freshId("field"));
  const below = hint ? h("p", { class: "hint", id: `${id}-hint` }, hint) : null;
  if (below) input.setAttribute("aria-describedby", below.id);
  return h("div", { class: "field" }, h("label", { for: id }, label), input, below);
}

export function checkbox(label, input) {
  return h("label", { class: "check" }, input, h("span", {}, label));
}

export function select(options, value) {
  const element = h(
    "select",
    {},
    options.map(([id, text]) => h("option", { value: id }, text)),
  );
  element.value = value;
  return element;
}

/** A button with an icon; `label` is its text, or only told to screen readers and on hovering where `bare`. */
export function button(label, { icon: name, kind = "", bare = false, ...rest } = {}) {
  const properties = { type: "button", class: `button ${kind} ${bare ? "bare" : ""}`.trim(), ...rest };
  if (bare) Object.assign(properties, { "aria-label": label, title: label });
  return h("button", properties, name && icon(name), bare ? null : h("span", {}, label));
}

/** Shows that a button's work goes on, and lets nobody press it meanwhile. */
export async function busy(element, task) {
  element.setAttribute("aria-busy", "true");
  element.disabled = true;
  try {
    return await task();
  } finally {
    element.removeAttribute("aria-busy");
    element.disabled = false;
  }
}

/** A form that shows what went wrong above its buttons, and takes no second press while `run` goes on. */
export function form({ fields, submit, kind = "primary", run, cancel, class: name = "form" }) {
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const go = h("button", { type: "submit", class: `button ${kind}` }, h("span", {}, submit));
  const element = h(
    "form",
    { class: name },
    fields,
    problem,
    h("div", { class: "form-end" }, cancel ? button("Cancel", { onclick: cancel }) : null, go),
  );
  element.addEventListener("submit", async (event) => {
    event.preventDefault();
    problem.hidden = true;
    try {
      await busy(go, run);
    } catch (error) {
      problem.hidden = false;
      problem.textContent = error.message;
    }
  });
  return element;
}

/**
 * Opens a dialog with a form in it. It closes when `run` is done, and stays with the error if it fails. Closed meanwhile,
 * the work goes on, and how it ended is told in a message. Resolves to the result, or to null if it was closed before.
 */
export function formDialog({ title, text, fields, submit, kind, run }) {
  return new Promise((resolve) => {
    const id = freshId("dialog");
    let result = null;
    const element = h("dialog", { class: "dialog", "aria-labelledby": id });
    const body = form({
      fields: [text ? h("p", {}, text) : null, fields ?? []],
      submit,
      kind,
      cancel: () => element.close(),
      run: async () => {
        try {
          result = (await run()) ?? true;
        } catch (error) {
          if (element.open) throw error;
          notify(error.message, "bad");
          return;
        }
        if (element.open) element.close();
        else resolve(result);
      },
    });
    fill(
      element,
      h(
        "header",
        {},
        h("h2", { id }, title),
        button("Close", { icon: "close", bare: true, onclick: () => element.close() }),
      ),
      body,
    );
    element.addEventListener("close", () => {
      element.remove();
      // While the work goes on the promise stays open for its result.
      const works = body.querySelector("[type=submit]").getAttribute("aria-busy");
      if (result !== null || !works) resolve(result);
    });
    // A page that is left takes its dialogs along.
    addEventListener("hashchange", () => element.close(), { once: true });
    document.body.append(element);
    element.showModal();
    element.querySelector("input, select, textarea")?.focus();
  });
}

/** Asks before something that cannot be undone. */
export function confirmed({ title, text, submit, run }) {
  return formDialog({ title, text, submit, kind: "danger", run });
}

/** Asks for one text. */
export function ask({ title, text, label, value = "", hint, submit, run, ...rest }) {
  const input = h("input", { type: "text", value, required: true, autocomplete: "off", spellcheck: false, ...rest });
  const answer = formDialog({ title, text, submit, fields: [field(label, input, hint)], run: () => run(input.value) });
  input.select();
  return answer;
}

/** A text to be copied, with a button that does. */
export function copyable(text, { secret = false, label = "Copy" } = {}) {
  const shown = h("code", { class: "copy-text", tabIndex: 0 }, text);
  const copy = button(label, { icon: "copy", kind: "small", bare: !secret });
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      notify("Copied.");
    } catch {
      // Browsers keep the clipboard from pages that came over plain HTTP.
      getSelection().selectAllChildren(shown);
      notify("Selected. Press Ctrl+C to copy.");
    }
  });
  return h("span", { class: secret ? "copyable secret" : "copyable" }, shown, copy);
}

/** Tells something for a few seconds; errors stay a while longer. */
export function notify(text, kind = "good") {
  const close = button("Dismiss", { icon: "close", bare: true, kind: "small" });
  const toast = h("div", { class: `toast ${kind}` }, h("span", {}, text), close);
  const gone = () => toast.remove();
  close.addEventListener("click", gone);
  const place = document.getElementById("toasts");
  place.append(toast);
  while (place.children.length > 4) place.firstChild.remove();
  setTimeout(gone, kind === "bad" ? 12000 : 5000);
}

/** What is shown where there is nothing yet. */
export function empty(name, title, text, ...actions) {
  return h(
    "div",
    { class: "empty" },
    icon(name),
    h("h2", {}, title),
    h("p", {}, text),
    actions.length > 0 ? h("div", { class: "empty-actions" }, actions) : null,
  );
}

export function failure(error) {
  return h("div", { class: "banner bad", role: "alert" }, error.message);
}
