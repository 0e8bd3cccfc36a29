// Sandboxes with guests: all that becomes of one, and what is in it.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";

/** Booting a guest takes a while where it is emulated. */
const SLOW = { timeout: Number(process.env.WRENN_WEB_SLOW ?? 120_000) };

export async function guests({ step, look, template, page }) {
  const pill = (state) => page.locator(`.title-line .pill[data-state="${state}"]`);
  const tab = (name) => page.getByRole("navigation", { name: "Parts of the sandbox" }).getByRole("link", { name });
  const act = (name) => page.getByRole("group", { name: "What to do with the sandbox" }).getByRole("button", { name });
  const dialog = page.getByRole("dialog");
  const screen = page.locator(".xterm-rows");
  const row = (name) => page.getByRole("row").filter({ hasText: name });

  /** Types a line into the terminal and waits for what it prints, which is to differ from what is typed. */
  async function type(line, printed) {
    await page.locator(".xterm-helper-textarea").focus();
    await page.keyboard.type(line);
    await page.keyboard.press("Enter");
    await screen.filter({ hasText: printed }).waitFor(SLOW);
  }
  const connected = () => page.locator(".terminal-status[data-state=good]").waitFor(SLOW);

  await step("a sandbox is made", async () => {
    await page.goto("/#/sandboxes");
    await page.getByRole("button", { name: "New sandbox" }).first().click();
    await page.getByLabel("Name", { exact: true }).fill("first");
    await page.getByLabel("Template").fill(template);
    await page.getByLabel("Memory").selectOption("256");
    await page.getByLabel("When idle for").selectOption("3600");
    await page.getByRole("button", { name: "Create" }).click();
    await pill("running").waitFor(SLOW);
    await page.getByRole("heading", { name: "first", level: 1 }).waitFor();
  });
  await step("its terminal", async () => {
    await connected();
    await type("echo seen-$((40 + 2))", "seen-42");
    await type("kept=shell-$((600 + 60 + 6)); stty size", /\d+ \d+/);
    await look.at(page, "terminal");
  });
  await step("its files", () => files({ page, tab, dialog, row, look }));
  await step("what it uses", async () => {
    await tab("Overview").click();
    await page.locator(".gauge-value").filter({ hasText: "%" }).waitFor(SLOW);
    await page.getByText("bash").first().waitFor();
    await look.at(page, "overview");
    await page.getByLabel("And then").selectOption("pause");
    await page.getByRole("button", { name: "Set", exact: true }).click();
    await page.getByText("The timeout is set.").waitFor(SLOW);
  });
  await step("paused and resumed, its shell goes on", async () => {
    await tab("Terminal").click();
    await connected();
    await act("Pause").click();
    await pill("paused").waitFor(SLOW);
    await page.getByRole("heading", { name: "The sandbox is paused" }).waitFor();
    await look.at(page, "paused");
    await act("Resume").click();
    await pill("running").waitFor(SLOW);
    await connected();
    await type("echo again-$kept", "again-shell-666");
  });
  await step("a snapshot, and a sandbox of it", async () => {
    const name = `web-${randomBytes(4).toString("hex")}`;
    await act("Snapshot").click();
    await dialog.getByLabel("Name", { exact: true }).fill(name);
    await dialog.getByRole("button", { name: "Make snapshot" }).click();
    await page.getByText(`Snapshot ${name} is there.`).waitFor(SLOW);
    await page.getByRole("link", { name: "Snapshots" }).click();
    await row(name).locator(".pill[data-state=ready]").waitFor(SLOW);
    await look.at(page, "snapshots");
    await row(name).getByRole("button", { name: "New sandbox" }).click();
    await dialog.getByLabel("Name", { exact: true }).fill("of-snapshot");
    await dialog.getByRole("button", { name: "Create" }).click();
    await pill("running").waitFor(SLOW);
    await connected();
    await type("cat up.txt | tr a-z A-Z", "UPLOADED");
    await destroy("of-snapshot");
    await page.getByRole("link", { name: "Snapshots" }).click();
    await row(name)
      .getByRole("button", { name: `Remove ${name}` })
      .click();
    await dialog.getByRole("button", { name: "Remove" }).click();
    await row(name).waitFor({ state: "detached", ...SLOW });
  });
  await step("a branch, which is another machine", async () => {
    await page.goto("/#/sandboxes");
    await row("first").getByRole("button", { name: "Branch" }).click();
    await dialog.getByLabel("Name", { exact: true }).fill("second");
    await dialog.getByRole("button", { name: "Branch" }).click();
    await row("second").locator(".pill[data-state=running]").waitFor(SLOW);
    await row("second").getByRole("link", { name: "second" }).click();
    await connected();
    await type("rm up.txt; ls up.txt || echo only-$((1 + 1))", "only-2");
    await page.goto("/#/sandboxes");
    await row("first").getByRole("link", { name: "first" }).click();
    await connected();
    await type("cat up.txt | tr a-z A-Z", "UPLOADED");
    await page.goto("/#/sandboxes");
    await row("second").waitFor();
    await look.at(page, "sandboxes");
  });
  await step("destroyed, one from its page and one from the list", async () => {
    await destroy("second");
    await page.goto("/#/sandboxes");
    await row("first").getByRole("button", { name: "Destroy" }).click();
    await dialog.getByRole("button", { name: "Destroy" }).click();
    await page.getByRole("heading", { name: "No sandboxes yet" }).waitFor(SLOW);
  });

  /** Destroys a sandbox from its page. */
  async function destroy(name) {
    await page.goto("/#/sandboxes");
    await row(name).getByRole("link", { name, exact: true }).click();
    await page.getByRole("heading", { name, level: 1 }).waitFor();
    await act("Destroy").click();
    await dialog.getByRole("button", { name: "Destroy" }).click();
    await page.getByRole("heading", { name: "Sandboxes", level: 1 }).waitFor(SLOW);
    await row(name).waitFor({ state: "detached", ...SLOW });
  }
}

async function files({ page, tab, dialog, row, look }) {
  await tab("Files").click();
  await page.getByRole("navigation", { name: "Directory" }).locator("[aria-current=location]").waitFor(SLOW);
  const upload = (name, contents) =>
    page.locator("input[type=file]").setInputFiles({ name, mimeType: "application/octet-stream", buffer: contents });
  await upload("up.txt", Buffer.from("uploaded"));
  await row("up.txt").waitFor();
  // Every byte comes back as it was, whatever the name.
  const name = "<b>odd &name ü.bin";
  const contents = randomBytes(300_000);
  await upload(name, contents);
  await row(name).waitFor();
  const saving = page.waitForEvent("download");
  await page.getByRole("button", { name: `Download ${name}` }).click();
  const saved = await readFile(await (await saving).path());
  assert.ok(saved.equals(contents), `${saved.length} bytes came back of ${contents.length}`);
  await page.getByRole("button", { name: "New folder" }).click();
  await dialog.getByLabel("Name", { exact: true }).fill("folder");
  await dialog.getByRole("button", { name: "Make folder" }).click();
  await row("folder").waitFor();
  await look.at(page, "files");
  await page.getByRole("button", { name: `Rename ${name}` }).click();
  await dialog.getByLabel("New name").fill("folder/plain.bin");
  await dialog.getByRole("button", { name: "Rename" }).click();
  await row(name).waitFor({ state: "detached" });
  await row("folder").getByRole("button", { name: "folder", exact: true }).click();
  await row("plain.bin").waitFor();
  await page.getByRole("button", { name: "Up", exact: true }).click();
  await page.getByRole("button", { name: "Remove folder" }).click();
  await dialog.getByRole("button", { name: "Remove" }).click();
  await row("folder").waitFor({ state: "detached" });
}
