//! The monitor's log: lines of text on standard error, or in a file that the API names.
//!
//! ```text
//! 2026-03-01T12:00:00.123Z [anonymous-instance:main] the microVM has started
//! ```
//!
//! Invariants:
//! - Writing a line never waits for a reader (see [`Output`]); what cannot be written is lost.
//! - Whatever a guest can bring about again and again is logged with the target [`GUEST`] and is held to
//!   [`BURST`] lines and then one every [`REFILL`], so that no guest fills the host's disk with it.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{LevelFilter, Log, Metadata, Record};
use wrenn_vmm::api::{self, LogLevel};

use crate::output::Output;

/// The target of messages that a guest can bring about at will.
pub(crate) const GUEST: &str = "guest";
/// How many such messages go through at once.
const BURST: u32 = 10;
/// How long it takes until one more goes through.
const REFILL: Duration = Duration::from_secs(10);
/// The longest line: a pipe takes this much at once or not at all.
const MAX_LINE: usize = 4096;

/// Why the log cannot go where it was told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LoggerError {
    #[error("the log file {} cannot be opened", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("standard error cannot be used for the log")]
    Stderr(#[source] io::Error),
}

static LOGGER: Logger = Logger(Mutex::new(None));

struct Logger(Mutex<Option<Sink>>);

/// Where lines go, and what they look like.
struct Sink {
    output: Output,
    instance: String,
    show_level: bool,
    show_origin: bool,
    module: Option<String>,
    allowance: Allowance,
}

/// Starts the log of the instance named `instance`, set up as `config` says.
///
/// # Errors
/// If the log file cannot be opened; nothing has changed then.
pub(crate) fn start(instance: &str, config: &api::Logger) -> Result<(), LoggerError> {
    let sink = Sink {
        output: Output::stderr().map_err(LoggerError::Stderr)?,
        instance: instance.to_owned(),
        show_level: false,
        show_origin: false,
        module: None,
        allowance: Allowance::new(Instant::now()),
    };
    *LOGGER.lock() = Some(sink);
    // Fails where a logger is set already, which is this one.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Info);
    configure(config)
}

/// Changes what `config` names, and leaves the rest.
///
/// # Errors
/// If the log file cannot be opened; nothing has changed then.
pub(crate) fn configure(config: &api::Logger) -> Result<(), LoggerError> {
    let output = config.log_path.as_ref().map(open).transpose()?;
    if let Some(sink) = LOGGER.lock().as_mut() {
        if let Some(output) = output {
            sink.output = output;
        }
        sink.show_level |= config.show_level;
        sink.show_origin |= config.show_log_origin;
        if config.module.is_some() {
            sink.module.clone_from(&config.module);
        }
    }
    if let Some(level) = config.level {
        log::set_max_level(filter(level));
    }
    Ok(())
}

fn open(path: &PathBuf) -> Result<Output, LoggerError> {
    let file = OpenOptions::new()
        // Reading too, so that a named pipe opens before it has a reader.
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    file.map(Output::new).map_err(|source| LoggerError::Open { path: path.clone(), source })
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::Off,
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warning => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    }
}

impl Logger {
    fn lock(&self) -> MutexGuard<'_, Option<Sink>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if let (true, Some(sink)) = (self.enabled(record.metadata()), self.lock().as_mut()) {
            sink.log(record, Instant::now(), SystemTime::now());
        }
    }

    fn flush(&self) {}
}

impl Sink {
    fn log(&mut self, record: &Record<'_>, now: Instant, time: SystemTime) {
        let module = record.module_path().unwrap_or_default();
        if self.module.as_ref().is_some_and(|wanted| !module.starts_with(wanted.as_str())) {
            return;
        }
        // The queue library's messages too are about what a guest did.
        if record.target() == GUEST || module.starts_with("virtio_queue") {
            match self.allowance.take(now) {
                None => return,
                Some(0) => {}
                Some(lost) => {
                    self.write(record, time, &format_args!("{lost} messages about the guest left out"))
                }
            }
        }
        self.write(record, time, record.args());
    }

    fn write(&mut self, record: &Record<'_>, time: SystemTime, message: &std::fmt::Arguments<'_>) {
        let thread = thread::current();
        let mut line = format!("{} [{}:{}", Utc(time), self.instance, thread.name().unwrap_or("?"));
        if self.show_level {
            line.push_str(&format!(":{}", record.level()));
        }
        if self.show_origin {
            line.push_str(&format!(":{}:{}", record.file().unwrap_or("?"), record.line().unwrap_or(0)));
        }
        line.push_str(&format!("] {message}"));
        // One message is one line, whatever a path or a guest put into it.
        let mut bytes: Vec<u8> = line.bytes().map(|b| if b.is_ascii_control() { b' ' } else { b }).collect();
        bytes.truncate(MAX_LINE - 1);
        bytes.push(b'\n');
        let _ = self.output.write(&bytes);
    }
}

/// How many more messages about the guest go through.
struct Allowance {
    left: u32,
    lost: u64,
    since: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { left: BURST, lost: 0, since: now }
    }

    /// Whether one more may go through, and if so, how many were lost before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let periods = now.saturating_duration_since(self.since).as_secs() / REFILL.as_secs();
        if periods > 0 {
            self.left = u32::try_from(periods).unwrap_or(BURST).saturating_add(self.left).min(BURST);
            self.since = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.lost))
            }
            None => {
                self.lost += 1;
                None
            }
        }
    }
}

/// A moment, written in UTC as ISO 8601 has it.
struct Utc(SystemTime);

impl std::fmt::Display for Utc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = date(days);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let millis = since.subsec_millis();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

/// Year, month and day of the day that comes `days` after 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut rest) = (1970, days);
    loop {
        let len = if is_leap(year) { 366 } else { 365 };
        if rest < len {
            break;
        }
        (year, rest) = (year + 1, rest - len);
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for len in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < len {
            break;
        }
        (month, rest) = (month + 1, rest - len);
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek};

    use super::*;

    fn sink() -> (Sink, File) {
        let file = tempfile::tempfile().unwrap();
        let sink = Sink {
            output: Output::new(file.try_clone().unwrap()),
            instance: "vm1".into(),
            show_level: true,
            show_origin: false,
            module: None,
            allowance: Allowance::new(Instant::now()),
        };
        (sink, file)
    }

    fn lines(mut file: File) -> Vec<String> {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn log(sink: &mut Sink, target: &str, module: &str, now: Instant, message: &str) {
        let args = format_args!("{message}");
        let record = Record::builder()
            .level(log::Level::Warn)
            .target(target)
            .module_path(Some(module))
            .args(args)
            .build();
        sink.log(&record, now, UNIX_EPOCH + Duration::from_millis(1_772_366_400_123));
    }

    #[test]
    fn a_message_is_one_line_with_its_time_and_place() {
        let (mut sink, file) = sink();
        log(&mut sink, "wrenn_monitor", "wrenn_monitor::vm", Instant::now(), "it\nruns\u{1b}[2J");
        log(&mut sink, "wrenn_monitor", "wrenn_monitor::vm", Instant::now(), &"x".repeat(10_000));
        let lines = lines(file);
        assert!(lines[0].starts_with("2026-03-01T12:00:00.123Z [vm1:"), "{}", lines[0]);
        assert!(lines[0].ends_with(":WARN] it runs [2J"), "{}", lines[0]);
        assert_eq!((lines.len(), lines[1].len()), (2, MAX_LINE - 1));
    }

    #[test]
    fn a_guest_cannot_flood_the_log() {
        let (mut sink, file) = sink();
        let start = Instant::now();
        for i in 0..1000 {
            log(&mut sink, GUEST, "wrenn_monitor::devices", start, &format!("bad request {i}"));
        }
        log(&mut sink, "x", "virtio_queue::queue", start, "also the guest's doing");
        log(&mut sink, "wrenn_monitor", "wrenn_monitor::vm", start, "ours");
        log(&mut sink, GUEST, "wrenn_monitor::devices", start + REFILL, "later");
        let lines = lines(file);
        let ends = |text: &str| lines.iter().filter(|line| line.ends_with(text)).count();
        assert_eq!(lines.len(), BURST as usize + 3);
        assert_eq!(
            (ends("] ours"), ends("] 991 messages about the guest left out"), ends("] later")),
            (1, 1, 1)
        );
    }

    #[test]
    fn only_the_wanted_module_is_logged() {
        let (mut sink, file) = sink();
        sink.module = Some("wrenn_monitor::api".into());
        log(&mut sink, "t", "wrenn_monitor::api::http", Instant::now(), "yes");
        log(&mut sink, "t", "wrenn_monitor::vm", Instant::now(), "no");
        assert_eq!(lines(file).len(), 1);
    }

    #[test]
    fn days_have_their_dates() {
        for (days, expected) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (19_723, (2024, 1, 1)),
            (20_819, (2027, 1, 1)),
        ] {
            assert_eq!(date(days), expected);
        }
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_named() {
        let config = api::Logger { log_path: Some("/nowhere/log".into()), ..Default::default() };
        let error = configure(&config).unwrap_err();
        assert_eq!(error.to_string(), "the log file /nowhere/log cannot be opened");
    }
}
