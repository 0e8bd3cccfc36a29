//! `wrenn doctor`

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use wrenn_core::{Check, Host, Verdict};

use crate::output::Format;

#[derive(Debug, Serialize)]
struct View {
    subject: String,
    verdict: String,
    found: String,
    remedy: Option<String>,
}

/// Prints what a host in `data` would find. The exit status says whether sandboxes can run.
///
/// # Errors
/// It cannot be looked for, or not be printed.
pub(crate) fn run(data: &Path, format: Format) -> Result<ExitCode, Box<dyn Error + Send + Sync>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let found = runtime.block_on(Host::builder().data_dir(data).preflight())?;
    let views: Vec<View> = found.checks().iter().map(View::of).collect();
    format.print(&views, |views| lines(views))?;
    if found.is_ready() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("wrenn: sandboxes cannot run here yet");
    Ok(ExitCode::FAILURE)
}

impl View {
    fn of(check: &Check) -> Self {
        let verdict = match check.verdict {
            Verdict::Good => "ok".into(),
            other => other.to_string(),
        };
        let Check { subject, found, remedy, .. } = check;
        Self {
            subject: subject.to_string(),
            verdict,
            found: found.to_string(),
            remedy: remedy.as_ref().map(ToString::to_string),
        }
    }
}

fn lines(views: &[View]) -> String {
    let width = views.iter().map(|view| view.subject.len()).max().unwrap_or(0);
    let mut text = String::new();
    for View { subject, verdict, found, remedy } in views {
        text.push_str(&format!("{verdict:8}{subject:width$}  {found}\n"));
        if let Some(remedy) = remedy {
            text.push_str(&format!("{:8}{:width$}  -> {remedy}\n", "", ""));
        }
    }
    text
}
