//! E2B's own Python library, unmodified.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// From PyPI: the version whose wire these routes are held against.
pub(crate) const LIBRARY: &str = "e2b==2.63.0";

/// The Python of an environment that has the library. It is made once, where the tests of this machine keep such things.
pub(crate) fn python() -> Result<PathBuf, String> {
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("server-{}", LIBRARY.replace("==", "-")));
    let has_it = |home: &Path| output(home.join("bin/python3"), ["-c", "import e2b"]).is_ok();
    if has_it(&made) {
        return Ok(made.join("bin/python3"));
    }
    // In the lab the machine's files cannot be written.
    let in_lab = std::env::var_os("WRENN_IN_LAB").is_some();
    let home = if in_lab { std::env::temp_dir().join("e2b-library") } else { made };
    if !has_it(&home) {
        // Not the one of whatever else is in PATH: some are slow to start, and the lab has them over the network.
        output(
            "/usr/bin/python3",
            ["-m", "venv", "--clear", home.to_str().ok_or("a path that is not UTF-8")?],
        )?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", LIBRARY];
        output(home.join("bin/python3"), pip)?;
    }
    Ok(home.join("bin/python3"))
}

/// Runs a script of the library's against a server; what it printed, also if it failed.
pub(crate) fn run(python: &Path, script: &Path, url: &str, key: &str) -> Result<String, String> {
    let mut command = new(python);
    command.arg(script).env("E2B_API_URL", url).env("E2B_SANDBOX_URL", url).env("E2B_API_KEY", key);
    text(command.output())
}

#[expect(clippy::disallowed_methods, reason = "a test runs the library that it is about")]
fn new(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUNBUFFERED", "1");
    command
}

fn output<const N: usize>(program: impl AsRef<OsStr>, arguments: [&str; N]) -> Result<String, String> {
    text(new(program).args(arguments).output())
}

fn text(output: std::io::Result<Output>) -> Result<String, String> {
    let output = output.map_err(|error| error.to_string())?;
    let text = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    if output.status.success() { Ok(text) } else { Err(text) }
}
