//! The monitor program; see the library for what it does.

fn main() -> std::process::ExitCode {
    wrenn_monitor::run(std::env::args_os())
}
