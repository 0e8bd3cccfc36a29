// The team's snapshots: templates that sandboxes are made of.

import * as api from "../api.js";
import { button, confirmed, empty, failure, notify } from "../dialogs.js";
import { fill, h, keyed, setText } from "../dom.js";
import { ago, bytes, mebibytes, moment, plural } from "../format.js";
import { poll } from "../poll.js";
import { statePill } from "../sandbox-actions.js";
import { pageHead } from "../shell.js";
import { newSandbox } from "./new-sandbox.js";

export async function show(root, { signal, title }) {
  title("Snapshots");
  let shown = [];
  const body = h("tbody");
  const table = h(
    "table",
    { class: "table" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        ["Name", "State", "Sandbox", "Size", "On disk", "Created"].map((name) => h("th", { scope: "col" }, name)),
        h("th", { scope: "col" }, h("span", { class: "unseen" }, "Actions")),
      ),
    ),
    body,
  );
  const place = h("div", {}, h("p", { class: "loading" }, "Loading…"));

  function row(snapshot) {
    const pill = statePill();
    const size = h("td", { "data-label": "On disk" });
    const make = button("New sandbox", {
      icon: "plus",
      kind: "small",
      onclick: () => newSandbox({ snapshot: snapshot.name }),
    });
    const remove = button(`Remove ${snapshot.name}`, {
      icon: "trash",
      bare: true,
      kind: "quiet-danger",
      onclick: () => removeOne(snapshot.name),
    });
    const element = h(
      "tr",
      {},
      h("td", { class: "cell-name" }, h("strong", {}, snapshot.name)),
      h("td", { "data-label": "State" }, pill.element),
      h(
        "td",
        { "data-label": "Sandbox" },
        h("a", { href: `#/sandboxes/${encodeURIComponent(snapshot.sandbox)}` }, h("code", {}, snapshot.sandbox)),
      ),
      h("td", { "data-label": "Size" }, `${plural(snapshot.vcpus, "CPU")} · ${mebibytes(snapshot.memory_mib)}`),
      size,
      h("td", { "data-label": "Created", title: moment(snapshot.created_at) }, ago(snapshot.created_at)),
      h("td", { class: "cell-actions" }, h("div", { class: "actions" }, make, remove)),
    );
    const update = (now) => {
      pill.update(now);
      setText(size, now.state === "ready" ? bytes(now.size_bytes) : "—");
      make.disabled = now.state !== "ready";
      remove.disabled = now.state !== "ready";
    };
    return { element, update };
  }

  async function removeOne(name) {
    const run = async () => {
      await api.remove(`/v1/snapshots/${encodeURIComponent(name)}`);
      notify(`Snapshot ${name} is removed.`);
    };
    await confirmed({
      title: `Remove snapshot ${name}?`,
      text: "Sandboxes that were made of it stay whole.",
      submit: "Remove",
      run,
    });
    refresh();
  }

  async function load() {
    const all = [];
    let cursor = null;
    do {
      const query = new URLSearchParams({ limit: "100", ...(cursor ? { cursor } : {}) });
      const page = await api.get(`/v1/snapshots?${query}`, { signal });
      all.push(...page.snapshots);
      cursor = page.next_cursor;
    } while (cursor);
    return all;
  }

  const refresh = poll(
    async () => {
      try {
        shown = await load();
      } catch (error) {
        if (error.name !== "AbortError") fill(place, failure(error));
        return;
      }
      keyed(body, shown, ({ name, created_at: at }) => `${name} ${at}`, row);
      if (shown.length > 0) {
        if (place.firstChild !== table) fill(place, table);
      } else {
        const go = h("a", { class: "button", href: "#/sandboxes" }, "To the sandboxes");
        fill(
          place,
          empty(
            "camera",
            "No snapshots yet",
            "Set up a sandbox as you want it, and make a snapshot of it. Sandboxes of that snapshot begin where it was, in memory too.",
            go,
          ),
        );
      }
    },
    () => (shown.some(({ state }) => state !== "ready") ? 800 : 5000),
    signal,
  );

  fill(root, pageHead("Snapshots", "Templates that sandboxes are made of."), place);
}
