//! E2B's own Python library, unmodified, as `make setup` installs it; for the tests of several crates.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The Python that has the library.
fn python() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.wrenn/tools/e2b/bin/python3");
    assert!(python.exists(), "e2b's library is missing: run `scripts/setup --test`");
    python
}

/// Runs a script of the library's against a server, which passes calls on to its sandboxes.
#[allow(dead_code, reason = "the agent's tests have no server")]
pub(crate) fn run_against_server(script: &Path, url: &str, key: &str) -> Result<String, String> {
    run(script, &[], &[("E2B_API_URL", url), ("E2B_SANDBOX_URL", url), ("E2B_API_KEY", key)])
}

/// Runs a script of the library's; what it printed, also if it failed.
#[expect(clippy::disallowed_methods, reason = "a test runs the library that it is about")]
pub(crate) fn run(script: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<String, String> {
    let mut command = Command::new(python());
    command.arg(script).args(arguments).envs(environment.iter().copied());
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUNBUFFERED", "1");
    let output = command.output().map_err(|error| error.to_string())?;
    let text = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    if output.status.success() { Ok(text) } else { Err(text) }
}
