// The machines that sandboxes live on, for operators.

import * as api from "../api.js";
import { button, busy, confirmed, empty, failure, field, formDialog, notify } from "../dialogs.js";
import { fill, h, keyed, setText } from "../dom.js";
import { ago, bytes, mebibytes, plural } from "../format.js";
import { poll } from "../poll.js";
import { statePill } from "../sandbox-actions.js";
import { pageHead } from "../shell.js";

export async function show(root, { signal, title, me }) {
  title("Hosts");
  if (!me.operator) {
    fill(root, empty("server", "There is no such page", "Hosts are shown to operators."));
    return;
  }
  const path = (name, rest = "") => `/v1/hosts/${encodeURIComponent(name)}${rest}`;
  const list = h("div", { class: "cards" });
  const place = h("div", {}, h("p", { class: "loading" }, "Loading…"));

  function card(host) {
    const pill = statePill();
    const facts = h("dl", { class: "facts-list" });
    const drain = button("Drain");
    let now = host;
    drain.addEventListener("click", () =>
      busy(drain, async () => {
        try {
          await api.put(path(host.name, "/draining"), { draining: !now.draining });
        } catch (error) {
          notify(error.message, "bad");
        }
        refresh();
      }),
    );
    const remove = button(`Forget ${host.name}`, {
      icon: "trash",
      bare: true,
      kind: "quiet-danger",
      onclick: () => forget(host.name),
    });
    const element = h(
      "article",
      { class: "card" },
      h("header", { class: "title-line" }, h("h2", {}, host.name), pill.element),
      facts,
      h("div", { class: "actions" }, drain, remove),
    );
    let told = "";
    const update = (next) => {
      now = next;
      pill.update({ state: next.up ? (next.draining ? "draining" : "up") : "missing" });
      if (!drain.getAttribute("aria-busy")) setText(drain.lastChild, next.draining ? "End draining" : "Drain");
      const rows = [
        ["Endpoint", next.endpoint],
        ["Seen", next.last_seen_at ? ago(next.last_seen_at) : "never"],
      ];
      // What it told when it was seen.
      if (next.last_seen_at)
        rows.push(
          ["Version", next.version || "—"],
          ["CPUs", String(next.vcpus)],
          ["Memory", `${mebibytes(next.available_mib)} free of ${mebibytes(next.memory_mib)}`],
          ["Disk", `${bytes(next.disk_free_bytes)} free`],
          ["Images", next.images.join(", ") || "none"],
        );
      if (told === JSON.stringify(rows)) return;
      told = JSON.stringify(rows);
      fill(
        facts,
        rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
      );
    };
    return { element, update };
  }

  async function forget(name) {
    await confirmed({
      title: `Forget ${name}?`,
      text: "Only a host without sandboxes and snapshots can be forgotten.",
      submit: "Forget",
      run: () => api.remove(path(name)),
    });
    refresh();
  }

  async function register() {
    const name = h("input", {
      type: "text",
      required: true,
      pattern: "[a-z0-9]([a-z0-9\\-]{0,61}[a-z0-9])?",
      autocomplete: "off",
      spellcheck: false,
    });
    const endpoint = h("input", {
      type: "text",
      required: true,
      maxLength: 300,
      autocomplete: "off",
      spellcheck: false,
    });
    await formDialog({
      title: "Register a host",
      fields: [
        field("Name", name, "Small letters, digits and dashes."),
        field("Endpoint", endpoint, "http://HOST:PORT, https://HOST:PORT or unix:/PATH"),
      ],
      submit: "Register",
      run: () => api.put(path(name.value), { endpoint: endpoint.value.trim() }),
    });
    refresh();
  }

  const refresh = poll(
    async () => {
      try {
        const { hosts } = await api.get("/v1/hosts", { signal });
        keyed(list, hosts, ({ name }) => name, card);
        setText(count, plural(hosts.length, "host"));
        if (hosts.length === 0)
          fill(place, empty("server", "No hosts yet", "Register the machines that sandboxes are to live on."));
        else if (place.firstChild !== list) fill(place, list);
      } catch (error) {
        if (error.name !== "AbortError") fill(place, failure(error));
      }
    },
    4000,
    signal,
  );
  const count = h("p", { class: "quiet", role: "status" });
  fill(
    root,
    pageHead("Hosts", null, button("Register a host", { icon: "plus", kind: "primary", onclick: register })),
    count,
    place,
  );
}
