// How pages look and whether everybody can use them: screenshots, accessibility, and the width of narrow screens.

import assert from "node:assert/strict";
import path from "node:path";

import { moduleFile } from "./modules.mjs";

const AXE = moduleFile("axe-core/axe.min.js");
const WIDE = { width: 1280, height: 800 };
const NARROW = { width: 390, height: 844 };

export class Look {
  #shots;

  constructor(shots) {
    this.#shots = shots;
  }

  async #shot(page, name) {
    if (this.#shots) await page.screenshot({ path: path.join(this.#shots, `${name}.png`) });
  }

  /** Looks at a page: wide and narrow, light and dark. */
  async at(page, name) {
    await fits(page, name);
    for (const scheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
      await this.#shot(page, `${name}-${scheme}`);
      await accessible(page, `${name}, ${scheme}`);
    }
    await page.emulateMedia({ colorScheme: "light" });
    await page.setViewportSize(NARROW);
    await this.#shot(page, `${name}-narrow`);
    await fits(page, name);
    await accessible(page, `${name}, narrow`);
    await page.setViewportSize(WIDE);
  }

  /** What every page shows when a step failed. */
  async failure(browser) {
    let count = 0;
    for (const page of browser.contexts().flatMap((context) => context.pages())) {
      count += 1;
      await this.#shot(page, `failed-${count}`).catch(() => {});
    }
  }
}

/** Fails where a page can be scrolled sideways. */
async function fits(page, name) {
  const { wanted, has } = await page.evaluate(() => ({
    wanted: document.documentElement.scrollWidth,
    has: innerWidth,
  }));
  assert.ok(wanted <= has, `${name}: ${wanted} pixels wide on a screen of ${has}`);
}

/** Fails on whatever axe finds against WCAG 2.2, A and AA. */
async function accessible(page, name) {
  await page.evaluate(AXE);
  const found = await page.evaluate(async () => {
    const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];
    // The terminal's cells are a picture of text; what it is for is told by its own helper elements.
    const { violations } = await globalThis.axe.run({ exclude: [[".xterm"]] }, { runOnly: tags });
    return violations.map(
      ({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html} ${node.failureSummary}`).join("; ")}`,
    );
  });
  assert.deepEqual(found, [], `${name}: not for everybody`);
}
