// The dialog that makes a sandbox.

import * as api from "../api.js";
import { checkbox, field, formDialog, notify, select } from "../dialogs.js";
import { freshId, h } from "../dom.js";
import { nameOf } from "../sandbox-actions.js";

const TIMEOUTS = [
  ["300", "5 minutes"],
  ["3600", "1 hour"],
  ["28800", "8 hours"],
  ["86400", "1 day"],
  ["0", "Never"],
];
const MEMORY = [
  ["128", "128 MiB"],
  ["256", "256 MiB"],
  ["512", "512 MiB"],
  ["1024", "1 GiB"],
  ["2048", "2 GiB"],
  ["4096", "4 GiB"],
  ["8192", "8 GiB"],
];
const CPUS = ["1", "2", "4", "8"].map((count) => [count, count]);

/** Reads lines of `NAME=VALUE`. */
function variables(text) {
  const found = {};
  for (const line of text.split("\n")) {
    if (!line.trim()) continue;
    const at = line.indexOf("=");
    if (at < 1) throw new Error(`Environment: “${line}” is not NAME=VALUE.`);
    found[line.slice(0, at).trim()] = line.slice(at + 1);
  }
  return found;
}

/** Names of the team's snapshots, to choose from; without them a name can be typed still. */
async function suggest(list, known) {
  try {
    const { snapshots } = await api.get("/v1/snapshots?limit=100");
    list.append(...snapshots.map(({ name }) => h("option", { value: name }, "snapshot")));
    for (const { name } of snapshots) known.add(name);
  } catch {
    // The field does without.
  }
}

/** Opens it. `begun` is called when something shows in the list of sandboxes. */
export async function newSandbox({ snapshot = null, begun = () => {} } = {}) {
  const known = new Set(snapshot ? [snapshot] : []);
  const list = h("datalist", { id: freshId("templates") }, h("option", { value: "debian" }, "image"));
  const name = h("input", { type: "text", maxLength: 200, autocomplete: "off" });
  const template = h("input", {
    type: "text",
    value: snapshot ?? "debian",
    required: true,
    autocomplete: "off",
    spellcheck: false,
  });
  // `list` is a property that can only be read.
  template.setAttribute("list", list.id);
  const cpus = select(CPUS, "1");
  const memory = select(MEMORY, "512");
  const timeout = select(TIMEOUTS, "300");
  const then = select(
    [
      ["destroy", "It is destroyed"],
      ["pause", "It is paused"],
    ],
    "destroy",
  );
  const internet = h("input", { type: "checkbox", checked: true });
  const environment = h("textarea", { rows: 3, spellcheck: false, placeholder: "NAME=value" });
  if (!snapshot) suggest(list, known);
  // A snapshot has its own size: its memory is of it.
  const sizes = () => {
    cpus.disabled = known.has(template.value.trim());
    memory.disabled = cpus.disabled;
  };
  template.addEventListener("input", sizes);
  sizes();

  let key = api.idempotencyKey();
  const changed = () => {
    key = api.idempotencyKey();
  };
  for (const input of [name, template, cpus, memory, timeout, then, internet, environment])
    input.addEventListener("input", changed);

  const run = async () => {
    const wanted = {
      template: template.value.trim(),
      metadata: name.value.trim() ? { name: name.value.trim() } : {},
      env: variables(environment.value),
      timeout_seconds: Number(timeout.value),
      on_timeout: then.value,
      egress: { internet: internet.checked },
    };
    if (!known.has(wanted.template))
      Object.assign(wanted, { vcpus: Number(cpus.value), memory_mib: Number(memory.value) });
    const asked = api.post("/v1/sandboxes", wanted, { headers: { "idempotency-key": key } });
    setTimeout(begun, 300);
    try {
      const made = await asked;
      notify(`${nameOf(made)} runs.`);
      return made;
    } catch (error) {
      // Only what may have been made without our hearing of it is asked for by the same key.
      if (error.code !== "unreachable") changed();
      throw error;
    }
  };

  const made = await formDialog({
    title: snapshot ? `New sandbox of ${snapshot}` : "New sandbox",
    fields: [
      field("Name", name, "You may leave it out."),
      snapshot ? null : [field("Template", template, "An image of the hosts, or a snapshot of your team."), list],
      snapshot ? null : h("div", { class: "pair" }, field("CPUs", cpus), field("Memory", memory)),
      h("div", { class: "pair" }, field("When idle for", timeout), field("And then", then)),
      h(
        "details",
        { class: "more" },
        h("summary", {}, "More"),
        checkbox("May reach the internet", internet),
        field("Environment", environment, "One variable a line."),
      ),
    ],
    submit: "Create",
    run,
  });
  begun();
  if (made) location.hash = `#/sandboxes/${encodeURIComponent(made.id)}`;
}
