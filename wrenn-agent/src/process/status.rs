//! How an end is put into words: as Go's `os.ProcessState`, which clients of this protocol know.

use crate::reaper::Exit;
use wrenn_agent_api::proto::process::process_event::EndEvent;

/// The end event of a command.
pub(super) fn end_event(exit: Exit) -> EndEvent {
    let (exit_code, exited, status, signal) = match exit {
        Exit::Code(code) => (code, true, format!("exit status {code}"), None),
        Exit::Signal(signal) => (-1, false, format!("signal: {}", signal_name(signal)), Some(signal)),
    };
    let error = (exit != Exit::Code(0)).then(|| status.clone());
    EndEvent { exit_code, exited, status, error, signal }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGTRAP => "trace/breakpoint trap",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGUSR1 => "user defined signal 1",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGUSR2 => "user defined signal 2",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        libc::SIGXCPU => "CPU time limit exceeded",
        libc::SIGXFSZ => "file size limit exceeded",
        libc::SIGSYS => "bad system call",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_read_as_go_says_them() {
        let ok = end_event(Exit::Code(0));
        assert_eq!((ok.exit_code, ok.exited, ok.status.as_str(), ok.error), (0, true, "exit status 0", None));
        let failed = end_event(Exit::Code(3));
        assert_eq!((failed.exit_code, failed.error.as_deref()), (3, Some("exit status 3")));
        let killed = end_event(Exit::Signal(9));
        assert_eq!((killed.exit_code, killed.exited, killed.signal), (-1, false, Some(9)));
        assert_eq!(
            (killed.status.as_str(), killed.error.as_deref()),
            ("signal: killed", Some("signal: killed"))
        );
        assert_eq!(end_event(Exit::Signal(34)).status, "signal: signal 34");
    }
}
