//! `wrenn doctor`

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;

use wrenn_core::{Check, Host, Preflight, Verdict};

/// Prints what a host in `data` would find.
///
/// # Errors
/// Something is missing without which no sandbox runs.
pub(crate) fn run(data: &Path) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let found = runtime.block_on(Host::builder().data_dir(data).preflight())?;
    print(&mut io::stdout().lock(), &found)?;
    match found.is_ready() {
        true => Ok(()),
        false => Err("sandboxes cannot run here yet".into()),
    }
}

fn print(out: &mut impl Write, found: &Preflight) -> io::Result<()> {
    let width = found.checks().iter().map(|check| check.subject.to_string().len()).max().unwrap_or(0);
    for Check { subject, verdict, found, remedy, .. } in found.checks() {
        // Padding counts characters of a text, so the verdict becomes one first.
        let (subject, verdict) = (subject.to_string(), mark(*verdict));
        writeln!(out, "{verdict:8}{subject:width$}  {found}")?;
        if let Some(remedy) = remedy {
            writeln!(out, "{:8}{:width$}  -> {remedy}", "", "")?;
        }
    }
    Ok(())
}

fn mark(verdict: Verdict) -> String {
    match verdict {
        Verdict::Good => "ok".into(),
        other => other.to_string(),
    }
}
