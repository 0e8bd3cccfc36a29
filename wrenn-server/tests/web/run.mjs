// Goes through the web page as a user does, in a headless Chromium.
//
// usage: run.mjs URL [--no-guests] [--template NAME] [--shots DIR]
//
// URL is a server that lets anybody sign up and tries of log-ins through. Without `--no-guests` it has a host with the image
// `debian` (or the template that is named). Screenshots go to DIR. Chromium is Debian's, or what CHROMIUM names.

import { existsSync, mkdirSync } from "node:fs";
import { parseArgs } from "node:util";

import { modules } from "./modules.mjs";
import { accounts } from "./accounts.mjs";
import { guests } from "./guests.mjs";
import { Look } from "./look.mjs";
import { sessions } from "./sessions.mjs";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    "no-guests": { type: "boolean", default: false },
    template: { type: "string", default: "debian" },
    shots: { type: "string" },
  },
});
const [url] = positionals;
if (!url || positionals.length > 1) {
  console.error("usage: run.mjs URL [--no-guests] [--template NAME] [--shots DIR]");
  process.exit(2);
}
if (options.shots) mkdirSync(options.shots, { recursive: true });

const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
if (!existsSync(executablePath)) {
  console.error(`there is no ${executablePath}: apt-get install chromium, or name another with CHROMIUM`);
  process.exit(2);
}
const { chromium } = modules("playwright-core");
const browser = await chromium.launch({
  executablePath,
  // Chromium refuses its own sandbox to root. The pages are this server's.
  args: process.getuid() === 0 ? ["--no-sandbox"] : [],
});

/** What pages complained about: whatever is in here fails the run. */
const complaints = [];

/** A browser of its own: nothing is shared with other users. */
async function visitor(settings = {}) {
  const context = await browser.newContext({ baseURL: url, locale: "en-GB", timezoneId: "UTC", ...settings });
  context.setDefaultTimeout(Number(process.env.WRENN_WEB_TIMEOUT ?? 15_000));
  context.on("weberror", (error) => complaints.push(`uncaught: ${error.error().stack}`));
  context.on("console", (message) => {
    // Answers that are errors are told so too; whether they were right is for the steps to say.
    const expected = message.text().startsWith("Failed to load resource");
    if (message.type() === "error" && !expected) complaints.push(`console: ${message.text()}`);
  });
  return context;
}

async function step(name, run) {
  const begun = performance.now();
  await run();
  console.log(`ok ${name} (${((performance.now() - begun) / 1000).toFixed(1)} s)`);
}

let failed = null;
const look = new Look(options.shots);
try {
  const ada = await accounts({ url, visitor, step, look });
  await sessions({ url, visitor, step, ...ada });
  if (!options["no-guests"]) await guests({ url, step, look, template: options.template, ...ada });
  await step("pages complain about nothing", () => {
    if (complaints.length > 0) throw new Error(complaints.join("\n"));
  });
} catch (error) {
  failed = error;
  await look.failure(browser);
} finally {
  await browser.close();
}
if (failed) {
  console.error(`FAILED: ${failed.stack}\n${complaints.join("\n")}`);
  process.exit(1);
}
