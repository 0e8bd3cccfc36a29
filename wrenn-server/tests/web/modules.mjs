// The packages of `package.json`, installed where nothing is committed: WRENN_WEB_MODULES, or `target/web-test`.

import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";

const here = path.dirname(fileURLToPath(import.meta.url));
const place = path.resolve(process.env.WRENN_WEB_MODULES ?? path.join(here, "../../../target/web-test"));

function install() {
  const lock = readFileSync(path.join(here, "package-lock.json"), "utf8");
  const done = path.join(place, "installed");
  if (existsSync(done) && readFileSync(done, "utf8") === lock) return;
  mkdirSync(place, { recursive: true });
  for (const file of ["package.json", "package-lock.json"]) copyFileSync(path.join(here, file), path.join(place, file));
  execFileSync("npm", ["ci", "--no-audit", "--no-fund", "--ignore-scripts"], {
    cwd: place,
    stdio: ["ignore", "ignore", "inherit"],
  });
  writeFileSync(done, lock);
}

install();
const require = createRequire(path.join(place, "package.json"));

/** What a package exports. */
export const modules = (name) => require(name);

/** A file of a package, as text. */
export const moduleFile = (name) => readFileSync(require.resolve(name), "utf8");
