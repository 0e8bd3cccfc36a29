//! What a person sees meanwhile: bars and spinners on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One step of a build.
#[derive(Debug)]
pub(crate) struct Step {
    what: String,
    start: Instant,
    /// `None` where nobody watches.
    bar: Option<ProgressBar>,
}

impl Step {
    /// Begins a step whose length is unknown.
    pub(crate) fn begin(what: impl Into<String>) -> Self {
        Self::with_bar(what.into(), || {
            let bar = ProgressBar::new_spinner();
            bar.set_style(style("{spinner} {prefix} {wide_msg:.dim}"));
            bar
        })
    }

    /// Begins a step of `total` bytes.
    pub(crate) fn of_bytes(what: impl Into<String>, total: u64) -> Self {
        Self::with_bar(what.into(), || {
            let bar = ProgressBar::new(total);
            bar.set_style(style("{spinner} {prefix} {wide_bar} {bytes}/{total_bytes} {eta}"));
            bar
        })
    }

    fn with_bar(what: String, bar: impl FnOnce() -> ProgressBar) -> Self {
        let bar = std::io::stderr().is_terminal().then(bar);
        match &bar {
            Some(bar) => {
                bar.set_prefix(what.clone());
                bar.enable_steady_tick(Duration::from_millis(120));
            }
            None => eprintln!("wrenn: {what} …"),
        }
        Self { what, start: Instant::now(), bar }
    }

    /// So many bytes more are done.
    pub(crate) fn advance(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    /// What exactly is being done, for those who watch.
    pub(crate) fn note(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
    }

    /// The step is done; `result` in a few words.
    pub(crate) fn done(mut self, result: &str) {
        self.clear();
        let separator = if result.is_empty() { "" } else { ": " };
        eprintln!("wrenn: {}{separator}{result} ({:.1} s)", self.what, self.start.elapsed().as_secs_f64());
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Step {
    /// A step that is not done failed: the error says so, and the bar must not stand in its way.
    fn drop(&mut self) {
        self.clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
