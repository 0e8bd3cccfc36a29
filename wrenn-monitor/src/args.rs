//! The command line: Firecracker's flags, as far as they mean something here.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::{Arg, Parser, ValueExt};
use wrenn_vmm::api::Logger;

/// What `--help` prints.
pub(crate) const USAGE: &str = "\
Usage: wrenn-monitor --api-sock PATH [OPTIONS]

Runs one microVM, driven by Firecracker's REST API on a Unix socket.

Options:
      --api-sock PATH       The socket to serve the API on; it must not exist
      --id ID               The instance's name: letters, digits and '-' (default: anonymous-instance)
      --no-seccomp          Do not restrict the system calls of the monitor's threads
      --level LEVEL         Log Off, Error, Warning, Info (default), Debug or Trace
      --log-path PATH       Log to this file or named pipe, not to standard error
      --module MODULE       Log only what comes from this module
      --show-level          Show the level in each line of the log
      --show-log-origin     Show the source file and line in each line of the log
      --boot-timer          Accepted and ignored, as are --start-time-us, --start-time-cpu-us
                            and --parent-cpu-time-us with their values
      --version             Print the version and exit
      --help                Print this and exit

Exit status: 0 the guest shut down or rebooted, 1 the monitor failed, 2 bad arguments, 10 the guest panicked.
";

const DEFAULT_ID: &str = "anonymous-instance";
const MAX_ID_LEN: usize = 64;

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    /// Serve the API.
    Run(Args),
    /// Print [`USAGE`].
    Help,
    /// Print the version.
    Version,
}

/// How to serve the API.
#[derive(Debug, PartialEq)]
pub(crate) struct Args {
    /// Where.
    pub(crate) api_sock: PathBuf,
    /// What the instance calls itself.
    pub(crate) id: String,
    /// Whether the threads' system calls are restricted.
    pub(crate) seccomp: bool,
    /// How to log.
    pub(crate) logger: Logger,
}

/// A command line that cannot be followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ArgsError {
    #[error("{0}")]
    Syntax(#[from] lexopt::Error),
    #[error("--api-sock is missing: it names the socket to serve the API on")]
    NoSocket,
    #[error("the id {0:?} is not 1 to {MAX_ID_LEN} letters, digits and '-'")]
    Id(String),
}

/// Reads the arguments, the program's name first.
///
/// # Errors
/// If there is an unknown one, one lacks its value, or `--api-sock` is missing.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, ArgsError> {
    let mut parser = Parser::from_iter(args);
    let mut api_sock = None;
    let mut run =
        Args { api_sock: PathBuf::new(), id: DEFAULT_ID.into(), seccomp: true, logger: Logger::default() };
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("api-sock") => api_sock = Some(PathBuf::from(parser.value()?)),
            Arg::Long("id") => run.id = id(parser.value()?.string()?)?,
            Arg::Long("no-seccomp") => run.seccomp = false,
            Arg::Long("level") => run.logger.level = Some(parser.value()?.parse()?),
            Arg::Long("log-path") => run.logger.log_path = Some(parser.value()?.into()),
            Arg::Long("module") => run.logger.module = Some(parser.value()?.string()?),
            Arg::Long("show-level") => run.logger.show_level = true,
            Arg::Long("show-log-origin") => run.logger.show_log_origin = true,
            Arg::Long("boot-timer") => {}
            Arg::Long("start-time-us" | "start-time-cpu-us" | "parent-cpu-time-us") => {
                parser.value()?.parse::<u64>()?;
            }
            Arg::Long("version") | Arg::Short('V') => return Ok(Command::Version),
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help),
            other => return Err(other.unexpected().into()),
        }
    }
    run.api_sock = api_sock.ok_or(ArgsError::NoSocket)?;
    Ok(Command::Run(run))
}

fn id(text: String) -> Result<String, ArgsError> {
    let valid = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if valid && (1..=MAX_ID_LEN).contains(&text.len()) { Ok(text) } else { Err(ArgsError::Id(text)) }
}

#[cfg(test)]
mod tests {
    use wrenn_vmm::api::LogLevel;

    use super::*;

    fn check(line: &str) -> Result<Command, String> {
        let args = ["wrenn-monitor"].into_iter().chain(line.split_whitespace()).map(OsString::from);
        parse(args).map_err(|e| e.to_string())
    }

    #[test]
    fn firecrackers_flags_are_understood() {
        let line = "--id vm-1 --api-sock /run/a.sock --no-seccomp --level warning --log-path=/tmp/log \
                    --show-level --boot-timer --start-time-us 12 --parent-cpu-time-us 0";
        let Ok(Command::Run(args)) = check(line) else { panic!("refused") };
        assert_eq!((args.api_sock, args.id.as_str(), args.seccomp), ("/run/a.sock".into(), "vm-1", false));
        assert_eq!(args.logger.level, Some(LogLevel::Warning));
        assert_eq!(args.logger.log_path, Some("/tmp/log".into()));
        assert!(args.logger.show_level && !args.logger.show_log_origin);
    }

    #[test]
    fn seccomp_is_on_unless_it_is_switched_off() {
        let Ok(Command::Run(args)) = check("--api-sock a") else { panic!("refused") };
        assert!(args.seccomp);
        assert_eq!(args.id, DEFAULT_ID);
    }

    #[test]
    fn help_and_version_need_nothing_else() {
        assert_eq!(check("--version"), Ok(Command::Version));
        assert_eq!(check("-h"), Ok(Command::Help));
    }

    #[test]
    fn mistakes_are_told() {
        for (line, part) in [
            ("", "--api-sock is missing"),
            ("--api-sock", "missing argument"),
            ("--api-sock a --gdb b", "--gdb"),
            ("--api-sock a --level loud", "unknown log level"),
            ("--api-sock a --id a/b", "\"a/b\" is not 1 to 64"),
            ("--api-sock a --seccomp-filter f", "--seccomp-filter"),
            ("--api-sock a --start-time-us soon", "invalid digit"),
            ("--api-sock a stray", "stray"),
        ] {
            let error = check(line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
        assert!(check(&format!("--api-sock a --id {}", "x".repeat(65))).is_err());
    }
}
