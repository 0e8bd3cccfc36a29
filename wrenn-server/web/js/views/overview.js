// What a sandbox uses, what runs in it, how it is reached, and how long it may be idle.

import * as api from "../api.js";
import { button, busy, confirmed, field, form, notify, select } from "../dialogs.js";
import { fill, h, keyed, setText } from "../dom.js";
import { bytes, mebibytes, moment } from "../format.js";
import { sparkline } from "../icons.js";
import { poll } from "../poll.js";

/** How many measurements are drawn. */
const KEPT = 60;
const EVERY = 2000;
const TIMEOUTS = [
  ["300", "5 minutes"],
  ["3600", "1 hour"],
  ["28800", "8 hours"],
  ["86400", "1 day"],
  ["0", "Never"],
];

function gauge(label) {
  const value = h("span", { class: "gauge-value" }, "—");
  const detail = h("span", { class: "quiet" });
  const line = sparkline();
  const seen = [];
  const element = h(
    "div",
    { class: "card gauge" },
    h("h3", {}, label),
    h("p", {}, value),
    h("p", {}, detail),
    line.element,
  );
  const add = (text, rest, measured, most) => {
    setText(value, text);
    setText(detail, rest);
    seen.push(measured);
    if (seen.length > KEPT) seen.shift();
    line.update(seen, most ?? Math.max(...seen, 1) * 1.6);
  };
  return { element, add };
}

export async function show(root, { signal, current, refresh }) {
  const sandbox = current();
  const path = (rest) => api.sandboxPath(sandbox.id, rest);
  const running = () => current().state === "running";

  const facts = h("dl", { class: "facts-list" });
  const fact = (name, value) =>
    value === undefined || value === null || value === "" ? null : h("div", {}, h("dt", {}, name), h("dd", {}, value));
  const labels = Object.entries(sandbox.metadata).filter(([key]) => key !== "name");
  fill(
    facts,
    fact("Template", sandbox.template),
    fact(
      "Branch of",
      sandbox.parent && h("a", { href: `#/sandboxes/${encodeURIComponent(sandbox.parent)}` }, sandbox.parent),
    ),
    fact("Size", `${sandbox.vcpus} CPU · ${mebibytes(sandbox.memory_mib)}`),
    fact("Created", moment(sandbox.created_at)),
    labels.map(([key, value]) => fact(key, value)),
  );
  if (!running()) {
    fill(root, h("div", { class: "card" }, h("h2", {}, "About"), facts));
    return;
  }

  const cpu = gauge("Processor");
  const memory = gauge("Memory");
  const disk = gauge("Disk");
  const network = gauge("Network");
  let before = null;
  poll(
    async () => {
      if (!running()) return;
      let now;
      try {
        now = { at: performance.now(), ...(await api.get(path("/metrics"), { signal })) };
      } catch (error) {
        // It is about to be told that the sandbox no longer runs.
        if (error.name !== "AbortError") before = null;
        return;
      }
      const seconds = before ? (now.at - before.at) / 1000 : null;
      if (seconds) {
        const used = Math.max(0, (now.cpu_seconds - before.cpu_seconds) / seconds);
        cpu.add(`${Math.round((used / now.vcpus) * 100)} %`, `of ${now.vcpus} CPU`, used, now.vcpus);
        const received = Math.max(0, now.network_received_bytes - before.network_received_bytes) / seconds;
        const sent = Math.max(0, now.network_sent_bytes - before.network_sent_bytes) / seconds;
        network.add(`${bytes(received)}/s`, `in, ${bytes(sent)}/s out`, received + sent);
      }
      memory.add(
        bytes(now.memory_resident_bytes),
        `of ${mebibytes(now.memory_mib)} on the host`,
        now.memory_resident_bytes,
        now.memory_mib * 1024 * 1024,
      );
      disk.add(bytes(now.disk_allocated_bytes), "of its own on the host", now.disk_allocated_bytes);
      before = now;
    },
    EVERY,
    signal,
  );

  fill(
    root,
    h("div", { class: "gauges" }, cpu.element, memory.element, disk.element, network.element),
    h(
      "div",
      { class: "columns" },
      h("div", { class: "card" }, h("h2", {}, "About"), facts),
      h("div", { class: "card" }, h("h2", {}, "Open a port"), ports(sandbox)),
      h("div", { class: "card" }, h("h2", {}, "Timeout"), timeout(sandbox, path, refresh)),
    ),
    h("div", { class: "card" }, h("h2", {}, "Commands that run"), processes(path, running, signal)),
  );
}

/** What listens in the sandbox is served at a name of its own. */
function ports(sandbox) {
  const port = h("input", { type: "number", min: 1, max: 65535, value: 8080, required: true });
  return form({
    fields: [
      h("p", { class: "quiet" }, "A server in the sandbox is reached at a name of its own, by whoever knows it."),
      field("Port", port),
    ],
    submit: "Open",
    kind: "",
    run: () => {
      const own = location.port ? `:${location.port}` : "";
      open(`${location.protocol}//${port.value}-${sandbox.preview_domain}${own}/`, "_blank", "noopener,noreferrer");
    },
  });
}

function timeout(sandbox, path, refresh) {
  const now = String(sandbox.timeout_seconds ?? 0);
  const known = TIMEOUTS.some(([seconds]) => seconds === now);
  const after = select(known ? TIMEOUTS : [[now, `${now} seconds`], ...TIMEOUTS], now);
  const then = select(
    [
      ["destroy", "It is destroyed"],
      ["pause", "It is paused"],
    ],
    sandbox.on_timeout,
  );
  return form({
    fields: [field("When idle for", after), field("And then", then)],
    submit: "Set",
    kind: "",
    run: async () => {
      await api.put(path("/timeout"), { timeout_seconds: Number(after.value), on_timeout: then.value });
      notify("The timeout is set.");
      refresh();
    },
  });
}

function processes(path, running, signal) {
  const body = h("tbody");
  const none = h("p", { class: "quiet" }, "None.");
  const table = h(
    "table",
    { class: "table plain", hidden: true },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        ["Process", "Command", "Directory"].map((name) => h("th", { scope: "col" }, name)),
        h("th", { scope: "col" }, h("span", { class: "unseen" }, "Actions")),
      ),
    ),
    body,
  );
  const ask = poll(
    async () => {
      if (!running()) return;
      let found;
      try {
        ({ processes: found } = await api.get(path("/processes"), { signal }));
      } catch {
        return;
      }
      table.hidden = found.length === 0;
      none.hidden = found.length > 0;
      keyed(body, found, ({ pid }) => pid, row);
    },
    3000,
    signal,
  );

  function row(process) {
    const line = [process.program, ...process.args].join(" ");
    const end = button(`End process ${process.pid}`, { icon: "close", bare: true, kind: "quiet-danger" });
    end.addEventListener("click", async () => {
      const run = () => busy(end, () => api.remove(path(`/processes/${process.pid}?signal=kill`)));
      await confirmed({
        title: `End process ${process.pid}?`,
        text: "It is killed with all that it started.",
        submit: "End it",
        run,
      });
      ask();
    });
    const element = h(
      "tr",
      {},
      h("td", { "data-label": "Process" }, String(process.pid)),
      h("td", { class: "cell-name" }, h("code", { class: "clip", title: line }, line)),
      h("td", { "data-label": "Directory" }, h("code", {}, process.cwd ?? "—")),
      h("td", { class: "cell-actions" }, end),
    );
    return { element, update: () => {} };
  }
  return h("div", {}, none, table);
}
