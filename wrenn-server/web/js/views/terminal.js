// The terminal of a sandbox: xterm.js over a WebSocket. The shell outlives the page: whoever comes back finds it.

import { FitAddon } from "../../vendor/xterm-addon-fit/addon-fit.mjs";
import { Terminal } from "../../vendor/xterm/xterm.mjs";
import * as api from "../api.js";
import { button, checkbox } from "../dialogs.js";
import { fill, h, setText } from "../dom.js";

/** The first byte of the server's binary messages. */
const TERMINAL_OUTPUT = 3;
/** The best shell that there is. */
const SHELL = "if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi";
const COLOURS = {
  background: "#15171c",
  foreground: "#dfe3ea",
  cursor: "#f0915c",
  cursorAccent: "#15171c",
  selectionBackground: "#3b4456",
  black: "#2a2f3a",
  red: "#ec6a68",
  green: "#7cc47f",
  yellow: "#e0b35a",
  blue: "#6ea3ee",
  magenta: "#c08be0",
  cyan: "#5cc1c4",
  white: "#cfd5df",
  brightBlack: "#7b8496",
  brightRed: "#ff8a86",
  brightGreen: "#9fe0a0",
  brightYellow: "#f5cf7f",
  brightBlue: "#97c0ff",
  brightMagenta: "#d9adf3",
  brightCyan: "#86dee0",
  brightWhite: "#ffffff",
};
/** Waits before connecting again, in milliseconds; then it takes a press of the button. */
const AGAIN = [300, 1000, 3000, 6000];
/** A connection that held for so long was a good one: waiting begins anew. */
const HELD = 5000;
/** How much is sent at a time. A text that is pasted may be larger than the server takes at once. */
const PIECE = 32 * 1024;

/** Remembers the shell of a sandbox for this tab of the browser. */
const remembered = (id) => `wrenn.shell.${id}`;

export async function show(root, { signal, current, refresh }) {
  const id = current().id;
  const terminal = new Terminal({
    cursorBlink: true,
    fontFamily: "ui-monospace, 'SF Mono', Menlo, 'DejaVu Sans Mono', monospace",
    fontSize: 14,
    lineHeight: 1.15,
    scrollback: 5000,
    theme: COLOURS,
  });
  const fit = new FitAddon();
  terminal.loadAddon(fit);

  const status = h("span", { class: "terminal-status", role: "status" }, "Connecting…");
  const again = button("Reconnect", { icon: "refresh", kind: "small" });
  const fresh = button("New shell", { icon: "plus", kind: "small" });
  const reader = h("input", { type: "checkbox" });
  const screen = h("div", { class: "terminal-screen" });
  fill(
    root,
    h(
      "div",
      { class: "terminal-frame" },
      h(
        "div",
        { class: "terminal-bar" },
        status,
        h("div", { class: "actions" }, checkbox("Screen reader", reader), again, fresh),
      ),
      screen,
    ),
    h("p", { class: "hint" }, "Shift+Esc leaves the terminal for the buttons above it."),
  );

  terminal.open(screen);
  terminal.attachCustomKeyEventHandler((event) => {
    if (event.key !== "Escape" || !event.shiftKey) return true;
    if (event.type === "keydown") fresh.focus();
    return false;
  });
  reader.addEventListener("change", () => {
    terminal.options.screenReaderMode = reader.checked;
  });

  let socket = null;
  let attempt = 0;
  let since = null;
  let timer = null;

  function say(text, state) {
    setText(status, text);
    status.dataset.state = state;
    again.hidden = state !== "lost";
  }

  const send = (message) => {
    if (socket?.readyState === WebSocket.OPEN) socket.send(message);
  };
  const tell = (control) => send(JSON.stringify(control));

  function input(bytes) {
    for (let at = 0; at < bytes.length; at += PIECE) send(bytes.subarray(at, at + PIECE));
  }

  const size = () => ({ columns: terminal.cols, rows: terminal.rows });

  /** What to ask for first: the shell that ran here before, or a new one. */
  function opening(pid) {
    if (pid) return { attach: pid };
    return { command: SHELL, terminal: size(), env: { TERM: "xterm-256color" } };
  }

  async function connect() {
    clearTimeout(timer);
    if (signal.aborted) return;
    const pid = Number(sessionStorage.getItem(remembered(id))) || null;
    say("Connecting…", "busy");
    let opened;
    try {
      opened = await api.socket(api.sandboxPath(id, "/stream"));
    } catch (error) {
      lost(error.message);
      return;
    }
    if (signal.aborted) {
      opened.close();
      return;
    }
    socket = opened;
    opened.addEventListener("open", () => opened.send(JSON.stringify(opening(pid))));
    opened.addEventListener("message", ({ data }) => {
      if (opened === socket) hear(data, pid);
    });
    opened.addEventListener("close", () => {
      if (opened === socket) lost("The connection is lost.");
    });
  }

  function hear(data, attached) {
    if (typeof data !== "string") {
      const message = new Uint8Array(data);
      if (message[0] === TERMINAL_OUTPUT) terminal.write(message.subarray(1));
      return;
    }
    const said = JSON.parse(data);
    if (said.event === "started") {
      since = Date.now();
      sessionStorage.setItem(remembered(id), String(said.pid));
      say(`Connected to process ${said.pid}`, "good");
      tell({ resize: size() });
      terminal.focus();
    } else if (said.event === "lost") {
      terminal.write(`\r\n\x1b[2m[${Number(said.bytes)} bytes were not kept]\x1b[0m\r\n`);
    } else if (said.event === "exited") {
      end();
      terminal.write("\r\n\x1b[2m[the shell has ended]\x1b[0m\r\n");
      say(
        `The shell has ended with ${said.signal ? `signal ${Number(said.signal)}` : `status ${Number(said.exit_code)}`}.`,
        "ended",
      );
    } else if (said.event === "error") {
      if (attached && said.code === "not_found") {
        // The shell that was remembered is no more.
        end();
        connect();
      } else {
        // The shell goes on where the sandbox does: it may be about to be paused.
        hangUp();
        lost(`The server says: ${said.message}.`);
      }
    }
  }

  function hangUp() {
    const closing = socket;
    socket = null;
    closing?.close();
  }

  /** Forgets the shell: it is over. */
  function end() {
    sessionStorage.removeItem(remembered(id));
    hangUp();
  }

  function lost(text) {
    socket = null;
    if (signal.aborted) return;
    if (since && Date.now() - since > HELD) attempt = 0;
    since = null;
    // It may be that the sandbox no longer runs; then this page is about to change.
    refresh();
    const wait = AGAIN[attempt];
    attempt += 1;
    if (wait === undefined) {
      say(text, "lost");
      return;
    }
    say(`${text} Trying again…`, "busy");
    timer = setTimeout(connect, wait);
  }

  again.addEventListener("click", () => {
    attempt = 0;
    connect();
  });
  fresh.addEventListener("click", () => {
    tell({ signal: "kill" });
    end();
    attempt = 0;
    terminal.reset();
    connect();
  });
  const encoder = new TextEncoder();
  terminal.onData((text) => input(encoder.encode(text)));
  terminal.onBinary((text) => input(Uint8Array.from(text, (character) => character.charCodeAt(0))));
  terminal.onResize(() => tell({ resize: size() }));

  const observer = new ResizeObserver(() => fit.fit());
  observer.observe(screen);
  signal.addEventListener("abort", () => {
    clearTimeout(timer);
    observer.disconnect();
    hangUp();
    terminal.dispose();
  });
  fit.fit();
  await connect();
}
