// One sandbox: its state, what can be done with it, and the tabs for its terminal, files and measurements.

import * as api from "../api.js";
import { button, busy, copyable, empty, failure, notify } from "../dialogs.js";
import { fill, h, setText } from "../dom.js";
import { plural } from "../format.js";
import { icon } from "../icons.js";
import { poll } from "../poll.js";
import { actions, isMoving, isOver, nameOf, resume, statePill } from "../sandbox-actions.js";
import * as files from "./files.js";
import * as overview from "./overview.js";
import { expiry } from "./sandboxes.js";
import * as terminal from "./terminal.js";

const TABS = [
  ["terminal", "Terminal", "terminal", terminal],
  ["files", "Files", "folder", files],
  ["overview", "Overview", "activity", overview],
];

export async function show(root, context, id, tab = "terminal") {
  const { signal, title } = context;
  title("Sandbox");
  const path = `#/sandboxes/${encodeURIComponent(id)}`;
  let sandbox = null;
  let tabOpen = null;

  const pill = statePill();
  const name = h("h1", { tabIndex: -1 }, id);
  const facts = h("p", { class: "quiet facts" });
  const reason = h("p", { class: "banner warn", hidden: true });
  const acts = actions({
    changed: ({ branches, destroyed }) => {
      if (destroyed) location.hash = "#/sandboxes";
      else if (branches?.length === 1) location.hash = `#/sandboxes/${encodeURIComponent(branches[0].id)}`;
      else if (branches) location.hash = "#/sandboxes";
      else refresh();
    },
  });
  const tabs = TABS.map(([key, label, iconName]) =>
    h(
      "a",
      { href: `${path}/${key}`, class: "tab", "aria-current": key === tab ? "page" : undefined },
      icon(iconName),
      label,
    ),
  );
  const panel = h("section", { class: "panel", "aria-label": TABS.find(([key]) => key === tab)[1] });
  fill(
    root,
    h(
      "nav",
      { class: "crumbs", "aria-label": "Where this is" },
      h("a", { href: "#/sandboxes" }, "Sandboxes"),
      h("span", { "aria-hidden": "true" }, "/"),
      copyable(id, { label: "Copy the id" }),
    ),
    h(
      "div",
      { class: "page-head" },
      h("div", { class: "sandbox-head" }, h("div", { class: "title-line" }, name, pill.element), facts),
      acts.element,
    ),
    reason,
    h("nav", { class: "tabs", "aria-label": "Parts of the sandbox" }, tabs),
    panel,
  );

  /** Opens the tab where it can be, and what stands in its place where not. */
  function openTab() {
    const running = sandbox.state === "running";
    const wanted = running || tab === "overview" ? "open" : sandbox.state;
    if (tabOpen?.wanted === wanted) return;
    tabOpen?.end.abort();
    const end = new AbortController();
    signal.addEventListener("abort", () => end.abort(), { signal: end.signal });
    tabOpen = { wanted, end };
    if (wanted !== "open") {
      fill(panel, notRunning());
      return;
    }
    const [, , , view] = TABS.find(([key]) => key === tab);
    const place = fill(panel);
    Promise.resolve(view.show(place, { ...context, signal: end.signal, current: () => sandbox, refresh })).catch(
      (error) => {
        if (error.name !== "AbortError" && !end.signal.aborted) fill(place, failure(error));
      },
    );
  }

  function notRunning() {
    if (sandbox.state === "paused") {
      const again = button("Resume", { icon: "play", kind: "primary" });
      again.addEventListener("click", () =>
        busy(again, () =>
          resume(sandbox)
            .catch((error) => notify(error.message, "bad"))
            .finally(refresh),
        ),
      );
      return empty(
        "pause",
        "The sandbox is paused",
        "Its memory and its files are on disk. Resumed, it goes on where it was.",
        again,
      );
    }
    if (isOver(sandbox)) {
      const back = h("a", { class: "button", href: "#/sandboxes" }, "To the sandboxes");
      return empty(
        "trash",
        `The sandbox is ${sandbox.state}`,
        sandbox.reason ?? "There is nothing of it any more.",
        back,
      );
    }
    if (sandbox.state === "missing") {
      return empty(
        "server",
        "The sandbox's host does not answer",
        "It comes back with its host. Nothing of it is lost because of a network.",
      );
    }
    return h(
      "div",
      { class: "empty", role: "status" },
      h("span", { class: "spinner" }),
      h("h2", {}, `The sandbox is ${sandbox.state}…`),
    );
  }

  function draw() {
    title(nameOf(sandbox));
    setText(name, nameOf(sandbox));
    pill.update(sandbox);
    acts.update(sandbox);
    const about = [sandbox.template, plural(sandbox.vcpus, "CPU"), `${sandbox.memory_mib} MiB`];
    if (sandbox.state === "running") about.push(sandbox.expires_at ? expiry(sandbox) : "never expires");
    setText(facts, about.join(" · "));
    reason.hidden = !sandbox.reason || isOver(sandbox);
    setText(reason, sandbox.reason ?? "");
    openTab();
  }

  const refresh = poll(
    async () => {
      try {
        sandbox = await api.get(api.sandboxPath(id), { signal });
      } catch (error) {
        if (error.name === "AbortError") return;
        if (error.status === 404) {
          fill(
            root,
            empty(
              "search",
              "There is no such sandbox",
              "It may be gone, or belong to another team.",
              h("a", { class: "button", href: "#/sandboxes" }, "To the sandboxes"),
            ),
          );
          return;
        }
        if (!sandbox) fill(panel, failure(error));
        return;
      }
      draw();
    },
    () => (sandbox && isMoving(sandbox) ? 700 : 2500),
    signal,
  );
  const ticking = setInterval(() => sandbox && draw(), 1000);
  signal.addEventListener("abort", () => clearInterval(ticking));
}
