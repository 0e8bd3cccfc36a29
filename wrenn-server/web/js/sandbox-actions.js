// What can be done with a sandbox, wherever it is shown.

import * as api from "./api.js";
import { ask, busy, button, confirmed, field, formDialog, notify } from "./dialogs.js";
import { h } from "./dom.js";
import { plural } from "./format.js";

/** States in which something is under way. */
const MOVING = new Set(["creating", "pausing", "resuming", "destroying"]);

export const isMoving = (sandbox) => MOVING.has(sandbox.state);
export const isOver = (sandbox) => sandbox.state === "destroyed" || sandbox.state === "failed";

/** What people call it: the name in its metadata, or its id. */
export const nameOf = (sandbox) => sandbox.metadata.name || sandbox.id;

export function statePill() {
  const element = h("span", { class: "pill" });
  const update = (sandbox) => {
    if (element.dataset.state === sandbox.state) return;
    element.dataset.state = sandbox.state;
    element.textContent = sandbox.state;
  };
  return { element, update };
}

async function pause(sandbox) {
  await api.post(api.sandboxPath(sandbox.id, "/pause"));
  notify(`${nameOf(sandbox)} is paused.`);
}

export async function resume(sandbox) {
  await api.post(api.sandboxPath(sandbox.id, "/resume"));
  notify(`${nameOf(sandbox)} runs again.`);
}

function branch(sandbox) {
  const count = h("input", { type: "number", min: 1, max: 64, value: 1, required: true });
  const name = h("input", { type: "text", maxLength: 200, autocomplete: "off", value: `${nameOf(sandbox)}-branch` });
  // The same request sent twice makes the branches once; another one is another.
  let key = api.idempotencyKey();
  for (const input of [count, name])
    input.addEventListener("input", () => {
      key = api.idempotencyKey();
    });
  return formDialog({
    title: `Branch ${nameOf(sandbox)}`,
    text: "Each branch goes on where the sandbox is now, with its files and its memory. The sandbox runs on.",
    fields: [field("How many", count), field("Name", name)],
    submit: "Branch",
    run: async () => {
      const wanted = Number(count.value);
      const metadata = name.value ? { name: name.value } : {};
      const headers = { "idempotency-key": key };
      let made;
      try {
        made = await api.post(api.sandboxPath(sandbox.id, "/branch"), { count: wanted, metadata }, { headers });
      } catch (error) {
        // Only what may have been made without our hearing of it is asked for by the same key.
        if (error.code !== "unreachable") key = api.idempotencyKey();
        throw error;
      }
      notify(`${plural(made.sandboxes.length, "branch", "branches")} of ${nameOf(sandbox)} made.`);
      return made.sandboxes;
    },
  });
}

function snapshot(sandbox) {
  return ask({
    title: `Snapshot of ${nameOf(sandbox)}`,
    text: "A snapshot is a template: sandboxes made of it begin where this one is now. The sandbox runs on.",
    label: "Name",
    pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]{0,63}",
    hint: "Letters, digits, dots, dashes and underscores.",
    submit: "Make snapshot",
    run: async (name) => {
      await api.post("/v1/snapshots", { sandbox: sandbox.id, name });
      notify(`Snapshot ${name} is there.`);
    },
  });
}

function destroy(sandbox) {
  return confirmed({
    title: `Destroy ${nameOf(sandbox)}?`,
    text: "Its files and its memory are gone then, for good. Snapshots and branches of it stay.",
    submit: "Destroy",
    run: async () => {
      await api.remove(api.sandboxPath(sandbox.id));
      notify(`${nameOf(sandbox)} is destroyed.`);
    },
  });
}

/**
 * The buttons for what can be done with a sandbox, those that cannot be in its state out of sight. `changed` is called
 * once something was begun or done, with what came of it: `{branches}` or `{destroyed: true}`.
 */
export function actions({ bare = false, changed }) {
  let sandbox = null;
  const direct = (element, task) =>
    element.addEventListener("click", () =>
      busy(element, async () => {
        const asked = task(sandbox);
        changed({});
        try {
          await asked;
        } catch (error) {
          notify(error.message, "bad");
        }
        changed({});
      }),
    );
  const viaDialog = (element, task, outcome) =>
    element.addEventListener("click", async () => {
      const result = await task(sandbox);
      changed(result === null ? {} : outcome(result));
    });
  const buttons = {
    pause: button("Pause", { icon: "pause", bare }),
    resume: button("Resume", { icon: "play", bare }),
    branch: button("Branch", { icon: "branch", bare }),
    snapshot: button("Snapshot", { icon: "camera", bare }),
    destroy: button("Destroy", { icon: "trash", bare, kind: "quiet-danger" }),
  };
  direct(buttons.pause, pause);
  direct(buttons.resume, resume);
  viaDialog(buttons.branch, branch, (branches) => ({ branches }));
  viaDialog(buttons.snapshot, snapshot, () => ({}));
  viaDialog(buttons.destroy, destroy, () => ({ destroyed: true }));
  const element = h(
    "div",
    { class: "actions", role: "group", "aria-label": "What to do with the sandbox" },
    Object.values(buttons),
  );
  const update = (now) => {
    sandbox = now;
    const running = now.state === "running";
    buttons.pause.hidden = !(running || now.state === "pausing");
    buttons.resume.hidden = !(now.state === "paused" || now.state === "resuming");
    for (const [name, each] of Object.entries(buttons)) {
      if (each.getAttribute("aria-busy")) continue;
      each.disabled = {
        pause: !running,
        resume: now.state !== "paused",
        branch: !running,
        snapshot: !running,
        destroy: isMoving(now) || isOver(now),
      }[name];
    }
  };
  return { element, update };
}
