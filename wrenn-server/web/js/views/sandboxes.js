// The list of sandboxes, which follows what becomes of them.

import * as api from "../api.js";
import { button, empty, failure } from "../dialogs.js";
import { fill, h, keyed, setText } from "../dom.js";
import { ago, duration, mebibytes, moment, plural } from "../format.js";
import { icon } from "../icons.js";
import { poll } from "../poll.js";
import { actions, isMoving, nameOf, statePill } from "../sandbox-actions.js";
import { pageHead } from "../shell.js";
import { newSandbox } from "./new-sandbox.js";

const FILTERS = [
  ["", "All"],
  ["running", "Running"],
  ["paused", "Paused"],
];

/** How long until it expires, in words. */
export function expiry(sandbox) {
  if (sandbox.state !== "running") return "—";
  if (!sandbox.expires_at) return "never";
  const seconds = (Date.parse(sandbox.expires_at) - Date.now()) / 1000;
  return `${sandbox.on_timeout === "pause" ? "pauses" : "ends"} in ${duration(seconds)}`;
}

function row(changed) {
  const pill = statePill();
  const name = h("a", { class: "row-name" });
  const id = h("code", { class: "quiet" });
  const reason = h("p", { class: "row-reason" });
  const cell = (label, ...content) => h("td", { "data-label": label }, content);
  const template = cell("Template");
  const size = cell("Size");
  const expires = cell("Expires");
  const created = cell("Created");
  const acts = actions({ bare: true, changed });
  const element = h(
    "tr",
    {},
    h("td", { class: "cell-name" }, h("div", {}, name, id), reason),
    cell("State", pill.element),
    template,
    size,
    expires,
    created,
    h("td", { class: "cell-actions" }, acts.element),
  );
  const update = (sandbox) => {
    pill.update(sandbox);
    acts.update(sandbox);
    name.href = `#/sandboxes/${encodeURIComponent(sandbox.id)}`;
    setText(name, nameOf(sandbox));
    setText(id, sandbox.metadata.name ? sandbox.id : "");
    setText(reason, sandbox.reason ?? (sandbox.parent ? `branch of ${sandbox.parent}` : ""));
    setText(template, sandbox.template);
    setText(size, `${plural(sandbox.vcpus, "CPU")} · ${mebibytes(sandbox.memory_mib)}`);
    setText(expires, expiry(sandbox));
    setText(created, ago(sandbox.created_at));
    created.title = moment(sandbox.created_at);
  };
  return { element, update };
}

export async function show(root, { signal, title }) {
  title("Sandboxes");
  let state = "";
  let search = "";
  let shown = [];
  let limit = 50;
  const filters = FILTERS.map(([id, label]) =>
    h(
      "button",
      { type: "button", "aria-pressed": String(id === state), onclick: (event) => choose(id, event.currentTarget) },
      label,
    ),
  );
  const find = h("input", { type: "search", placeholder: "Filter by name, id or template", "aria-label": "Filter" });
  const body = h("tbody");
  const table = h(
    "table",
    { class: "table sandboxes" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        ["Sandbox", "State", "Template", "Size", "Expires", "Created"].map((name) => h("th", { scope: "col" }, name)),
        h("th", { scope: "col" }, h("span", { class: "unseen" }, "Actions")),
      ),
    ),
    body,
  );
  const place = h("div", { "aria-busy": "true" }, h("p", { class: "loading" }, "Loading…"));
  const count = h("p", { class: "quiet", role: "status" });
  const more = button("Show more", {
    onclick: () => {
      limit += 50;
      refresh();
    },
  });
  const create = () => newSandbox({ begun: () => refresh() });

  function choose(id, pressed) {
    state = id;
    for (const each of filters) each.setAttribute("aria-pressed", String(each === pressed));
    refresh();
  }
  find.addEventListener("input", () => {
    search = find.value.trim().toLowerCase();
    draw();
  });

  function draw() {
    const matches = (sandbox) =>
      [nameOf(sandbox), sandbox.id, sandbox.template].some((text) => text.toLowerCase().includes(search));
    const found = shown.filter(matches);
    keyed(
      body,
      found,
      (sandbox) => sandbox.id,
      () => row(refresh),
    );
    let content = table;
    if (shown.length === 0 && !state) {
      content = empty(
        "box",
        "No sandboxes yet",
        "A sandbox is a small virtual machine that boots in moments, and that you can pause, resume and branch.",
        button("New sandbox", { icon: "plus", kind: "primary", onclick: create }),
      );
    } else if (found.length === 0) {
      content = empty(
        "search",
        "None of them",
        search ? "No sandbox goes with that filter." : `No sandbox is ${state}.`,
      );
    }
    // Put there anew only when it is another: the focus is in it.
    if (place.firstChild !== content) fill(place, content);
    place.removeAttribute("aria-busy");
    setText(count, shown.length > 0 ? plural(found.length, "sandbox", "sandboxes") : "");
  }

  /** All pages up to as many as are wanted. */
  async function load() {
    const all = [];
    let cursor = null;
    do {
      const query = new URLSearchParams({ limit: "50" });
      // Those that are changing stay in sight whatever is chosen: they are about to be it, or no longer.
      if (state) query.set("state", `${state},creating,pausing,resuming,destroying`);
      if (cursor) query.set("cursor", cursor);
      const page = await api.get(`/v1/sandboxes?${query}`, { signal });
      all.push(...page.sandboxes);
      cursor = page.next_cursor;
    } while (cursor && all.length < limit);
    more.hidden = !cursor;
    return all;
  }

  const refresh = poll(
    async () => {
      try {
        shown = await load();
        draw();
      } catch (error) {
        if (error.name === "AbortError") return;
        fill(place, failure(error));
      }
    },
    () => (shown.some(isMoving) ? 800 : 3000),
    signal,
  );
  // Countdowns go on between answers.
  const ticking = setInterval(() => shown.length > 0 && place.firstChild === table && draw(), 1000);
  signal.addEventListener("abort", () => clearInterval(ticking));

  more.hidden = true;
  fill(
    root,
    pageHead("Sandboxes", null, button("New sandbox", { icon: "plus", kind: "primary", onclick: create })),
    h(
      "div",
      { class: "toolbar" },
      h("div", { class: "search" }, icon("search"), find),
      h("div", { class: "segments", role: "group", "aria-label": "State" }, filters),
      count,
    ),
    place,
    more,
  );
}
