//! The pager's program; see the library for what it does.

fn main() -> std::process::ExitCode {
    wrenn_pager::run()
}
