// The files of a sandbox: looked through, uploaded, downloaded, made, renamed and removed.

import * as api from "../api.js";
import { ask, busy, button, confirmed, empty, failure, notify } from "../dialogs.js";
import { fill, h } from "../dom.js";
import { ago, bytes, moment, plural } from "../format.js";
import { icon } from "../icons.js";

/** The directory that each sandbox was left at, while the page is open. */
const places = new Map();

function join(directory, name) {
  return directory.endsWith("/") ? directory + name : `${directory}/${name}`;
}

function parent(path) {
  return path.slice(0, path.lastIndexOf("/")) || "/";
}

/** Directories first, and each by name. */
function order(a, b) {
  const rank = (file) => (file.kind === "directory" ? 0 : 1);
  return rank(a) - rank(b) || a.name.localeCompare(b.name);
}

export async function show(root, { signal, current }) {
  const id = current().id;
  const at = (rest, query) => api.sandboxPath(id, `/files${rest}${query ? `?${new URLSearchParams(query)}` : ""}`);
  let directory = places.get(id) ?? (await home());

  async function home() {
    try {
      return (await api.get(at("/stat", { path: "." }), { signal })).path;
    } catch (error) {
      if (error.name === "AbortError") throw error;
      return "/";
    }
  }

  const crumbs = h("nav", { class: "path", "aria-label": "Directory" });
  const place = h("div", { class: "files-list" });
  const transfers = h("div", { class: "transfers" });
  const pick = h("input", { type: "file", multiple: true, hidden: true });
  const up = button("Up", { icon: "up", bare: true, onclick: () => open(parent(directory)) });
  const reload = button("Refresh", { icon: "refresh", bare: true, onclick: () => open(directory) });
  const make = button("New folder", { icon: "folderPlus", onclick: makeDirectory });
  const choose = button("Upload", { icon: "upload", kind: "primary", onclick: () => pick.click() });
  pick.addEventListener("change", () => {
    uploadAll([...pick.files]);
    pick.value = "";
  });
  const drop = h(
    "div",
    { class: "files" },
    h("div", { class: "files-bar" }, up, crumbs, h("div", { class: "actions" }, reload, make, choose, pick)),
    transfers,
    place,
    h("p", { class: "hint" }, "Files can be dropped here."),
  );
  for (const kind of ["dragenter", "dragover"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("dropping");
    });
  }
  drop.addEventListener("dragleave", (event) => {
    if (!drop.contains(event.relatedTarget)) drop.classList.remove("dropping");
  });
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("dropping");
    uploadAll([...event.dataTransfer.files]);
  });
  fill(root, drop);

  function drawPath() {
    const parts = directory.split("/").filter(Boolean);
    const step = (label, path, last) =>
      h(
        "button",
        { type: "button", class: "link", "aria-current": last ? "location" : undefined, onclick: () => open(path) },
        label,
      );
    fill(
      crumbs,
      step("/", "/", parts.length === 0),
      parts.map((part, i) => [
        i > 0 ? h("span", { "aria-hidden": "true" }, "/") : null,
        step(part, `/${parts.slice(0, i + 1).join("/")}`, i === parts.length - 1),
      ]),
    );
    up.disabled = parts.length === 0;
  }

  let turn = 0;

  async function open(path) {
    const mine = ++turn;
    place.setAttribute("aria-busy", "true");
    try {
      const { files } = await api.get(at("/list", { path }), { signal });
      if (mine !== turn) return;
      directory = path;
      places.set(id, path);
      drawPath();
      fill(
        place,
        files.length > 0
          ? table(files.sort(order))
          : empty("folder", "Nothing in here", "Upload files, or make a folder."),
      );
    } catch (error) {
      if (error.name === "AbortError" || mine !== turn) return;
      if (place.children.length > 0) notify(error.message, "bad");
      else fill(place, failure(error));
    } finally {
      if (mine === turn) place.removeAttribute("aria-busy");
    }
  }

  function table(files) {
    return h(
      "table",
      { class: "table" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["Name", "Size", "Owner", "Mode", "Changed"].map((name) => h("th", { scope: "col" }, name)),
          h("th", { scope: "col" }, h("span", { class: "unseen" }, "Actions")),
        ),
      ),
      h("tbody", {}, files.map(row)),
    );
  }

  function row(file) {
    const isDirectory = file.kind === "directory";
    const name = isDirectory
      ? h(
          "button",
          { type: "button", class: "file-name", onclick: () => open(file.path) },
          icon("folder"),
          h("span", {}, file.name),
        )
      : h("span", { class: "file-name" }, icon(file.link_target ? "link" : "file"), h("span", {}, file.name));
    const save =
      isDirectory || file.kind !== "file" ? null : button(`Download ${file.name}`, { icon: "download", bare: true });
    save?.addEventListener("click", () => busy(save, () => download(file)));
    return h(
      "tr",
      { data: { name: file.name } },
      h(
        "td",
        { class: "cell-name" },
        name,
        file.link_target ? h("span", { class: "quiet" }, ` → ${file.link_target}`) : null,
      ),
      h("td", { "data-label": "Size" }, isDirectory ? "—" : bytes(file.size)),
      h("td", { "data-label": "Owner" }, file.owner),
      h("td", { "data-label": "Mode" }, h("code", {}, file.mode)),
      h(
        "td",
        { "data-label": "Changed", title: file.modified_at ? moment(file.modified_at) : "" },
        file.modified_at ? ago(file.modified_at) : "—",
      ),
      h(
        "td",
        { class: "cell-actions" },
        h(
          "div",
          { class: "actions" },
          save,
          button(`Rename ${file.name}`, { icon: "edit", bare: true, onclick: () => rename(file) }),
          button(`Remove ${file.name}`, {
            icon: "trash",
            bare: true,
            kind: "quiet-danger",
            onclick: () => remove(file),
          }),
        ),
      ),
    );
  }

  async function download(file) {
    try {
      const response = await api.request("GET", at("", { path: file.path }), { signal });
      // A large blob goes to the browser's disk. The link is what makes it a file with a name.
      const url = URL.createObjectURL(await response.blob());
      h("a", { href: url, download: file.name }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60000);
    } catch (error) {
      if (error.name !== "AbortError") notify(`${file.name}: ${error.message}`, "bad");
    }
  }

  async function uploadAll(files) {
    const to = directory;
    // One after another: they share one line anyway.
    let done = 0;
    for (const file of files) done += (await uploadOne(file, to)) ? 1 : 0;
    if (done > 0) notify(`${plural(done, "file")} uploaded.`);
    if (!signal.aborted && directory === to) open(directory);
  }

  async function uploadOne(file, to) {
    const cancelled = new AbortController();
    signal.addEventListener("abort", () => cancelled.abort(), { signal: cancelled.signal });
    const bar = h("progress", { max: 1, value: 0, "aria-label": `Uploading ${file.name}` });
    const entry = h(
      "div",
      { class: "transfer" },
      h("span", { class: "clip" }, file.name),
      bar,
      button("Cancel", { kind: "small", onclick: () => cancelled.abort() }),
    );
    transfers.append(entry);
    try {
      await api.upload(at("", { path: join(to, file.name) }), file, {
        onProgress: (part) => {
          bar.value = part;
        },
        signal: cancelled.signal,
      });
      return true;
    } catch (error) {
      if (error.name !== "AbortError") notify(`${file.name}: ${error.message}`, "bad");
      return false;
    } finally {
      entry.remove();
    }
  }

  async function makeDirectory() {
    const made = await ask({
      title: "New folder",
      label: "Name",
      submit: "Make folder",
      run: (name) => api.post(at("/mkdir"), { path: name.startsWith("/") ? name : join(directory, name) }),
    });
    if (made) open(directory);
  }

  async function rename(file) {
    const done = await ask({
      title: `Rename ${file.name}`,
      label: "New name",
      value: file.name,
      submit: "Rename",
      hint: "A path moves it: into a folder in here, or from / on.",
      run: (name) =>
        api.post(at("/rename"), { from: file.path, to: name.startsWith("/") ? name : join(parent(file.path), name) }),
    });
    if (done) open(directory);
  }

  async function remove(file) {
    const what = file.kind === "directory" ? "The folder is removed with all that is in it." : "The file is removed.";
    const done = await confirmed({
      title: `Remove ${file.name}?`,
      text: `${what} It cannot be brought back.`,
      submit: "Remove",
      run: () => api.remove(at("", { path: file.path })),
    });
    if (done) open(directory);
  }

  drawPath();
  await open(directory);
}
