//! Which system calls each of the monitor's threads may make.
//!
//! A guest that has taken over a thread of the monitor is left with what that thread needs anyway. Whatever
//! else it tries kills the whole process with `SIGSYS`, which its parent sees as the exit status.
//!
//! A filter is applied by the thread that it is for, once it has been set up; threads that it starts inherit
//! it, so the main thread's filter must allow what vCPU threads need before they apply their own.

use std::collections::BTreeMap;

use libc::{self as sys, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// A kind of thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thread {
    /// Serves the API's socket.
    Api,
    /// Runs the event loop: devices, and the API's actions.
    Main,
    /// Runs a vCPU.
    Vcpu,
}

/// Why a thread's system calls cannot be restricted.
#[derive(Debug, thiserror::Error)]
#[error("the system calls of the {thread:?} thread cannot be restricted (--no-seccomp does without)")]
pub(crate) struct SeccompError {
    thread: Thread,
    source: seccompiler::Error,
}

/// Restricts the calling thread, for good.
///
/// # Errors
/// If the kernel has no seccomp filters.
pub(crate) fn apply(thread: Thread) -> Result<(), SeccompError> {
    let failed = |source| SeccompError { thread, source };
    let program = filter(thread).map_err(|e| failed(e.into()))?;
    seccompiler::apply_filter(&program).map_err(failed)?;
    log::debug!("system calls are restricted to those of the {thread:?} thread");
    Ok(())
}

/// What every thread needs: memory, locks, time, the log and the console, an orderly end.
const COMMON: &[c_long] = &[
    sys::SYS_brk,
    sys::SYS_clock_gettime,
    sys::SYS_close,
    sys::SYS_exit,
    sys::SYS_exit_group,
    // Debug builds check a descriptor before they close it.
    sys::SYS_fcntl,
    sys::SYS_futex,
    sys::SYS_getpid,
    sys::SYS_getrandom,
    sys::SYS_gettid,
    sys::SYS_madvise,
    sys::SYS_mremap,
    sys::SYS_munmap,
    sys::SYS_poll,
    sys::SYS_ppoll,
    sys::SYS_read,
    sys::SYS_restart_syscall,
    sys::SYS_rt_sigaction,
    sys::SYS_rt_sigprocmask,
    sys::SYS_rt_sigreturn,
    sys::SYS_sched_yield,
    sys::SYS_sigaltstack,
    sys::SYS_tgkill,
    sys::SYS_write,
];

/// Clients come and go.
const API: &[c_long] = &[sys::SYS_accept4, sys::SYS_recvfrom, sys::SYS_sendto];

/// Disks, the TAP, snapshot files, the fault server's socket, guest memory, vCPU threads to start, and the copy of the
/// process that freezes guest memory.
const MAIN: &[c_long] = &[
    sys::SYS_clone,
    sys::SYS_clone3,
    sys::SYS_close_range,
    sys::SYS_connect,
    sys::SYS_epoll_ctl,
    sys::SYS_epoll_wait,
    sys::SYS_eventfd2,
    sys::SYS_fdatasync,
    sys::SYS_fstat,
    sys::SYS_fsync,
    sys::SYS_ftruncate,
    sys::SYS_getppid,
    sys::SYS_lseek,
    sys::SYS_newfstatat,
    sys::SYS_openat,
    sys::SYS_pread64,
    sys::SYS_preadv,
    sys::SYS_pwrite64,
    sys::SYS_pwritev,
    sys::SYS_recvmsg,
    sys::SYS_rseq,
    sys::SYS_sched_getaffinity,
    sys::SYS_seccomp,
    sys::SYS_sendmsg,
    sys::SYS_set_robust_list,
    sys::SYS_setsockopt,
    sys::SYS_statx,
    sys::SYS_sysinfo,
    sys::SYS_timerfd_create,
    sys::SYS_timerfd_settime,
    sys::SYS_unlink,
    sys::SYS_userfaultfd,
    sys::SYS_writev,
];

/// The ioctl requests of one driver have its type (`_IOC_TYPE`) in their second byte.
const DRIVER: u64 = 0xff00;
const KVM: u64 = 0xae00;
const USERFAULTFD: u64 = 0xaa00;

/// Requests that are allowed one by one, as their driver has dangerous ones beside them: `FIONBIO` makes a
/// socket non-blocking, and has the type of terminals, as have those of a TAP.
const FIONBIO: u64 = sys::FIONBIO;
const TAP: [u64; 3] = [sys::TUNSETIFF, sys::TUNSETVNETHDRSZ, sys::TUNSETOFFLOAD];
/// Looks for a network interface by its name.
const SIOCGIFINDEX: u64 = sys::SIOCGIFINDEX;
/// `KVM_RUN` and `KVM_KVMCLOCK_CTRL` (`linux/kvm.h`): all that a vCPU's thread does with it.
const VCPU: [u64; 2] = [0xae80, 0xaead];

/// What an ioctl's request may be, by its second argument.
fn ioctls(thread: Thread) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let exactly = |request: &u64| rule(1, SeccompCmpOp::Eq, *request);
    let driver = |kind| rule(1, SeccompCmpOp::MaskedEq(DRIVER), kind);
    match thread {
        Thread::Api => [FIONBIO].iter().map(exactly).collect(),
        Thread::Vcpu => VCPU.iter().map(exactly).collect(),
        Thread::Main => {
            // Those of the threads that it starts, which have its filter too, are among KVM's.
            let single = TAP.iter().chain(&[FIONBIO, SIOCGIFINDEX]).map(exactly);
            single.chain([KVM, USERFAULTFD].map(driver)).collect()
        }
    }
}

fn filter(thread: Thread) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    let calls = match thread {
        Thread::Api => API,
        Thread::Main => MAIN,
        Thread::Vcpu => &[],
    };
    // A call without rules is allowed whatever its arguments.
    for call in COMMON.iter().chain(calls) {
        rules.insert(*call, Vec::new());
    }
    rules.insert(sys::SYS_ioctl, ioctls(thread)?);
    let not_executable = || rule(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0);
    rules.insert(sys::SYS_mmap, vec![not_executable()?]);
    rules.insert(sys::SYS_mprotect, vec![not_executable()?]);
    let prctl = [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS, libc::PR_SET_PDEATHSIG];
    let prctl = prctl.map(|what| rule(0, SeccompCmpOp::Eq, what as u64));
    rules.insert(sys::SYS_prctl, prctl.into_iter().collect::<Result<_, _>>()?);
    if thread == Thread::Main {
        rules.insert(sys::SYS_socket, vec![rule(0, SeccompCmpOp::Eq, libc::AF_UNIX as u64)?]);
    }
    let filter =
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?;
    filter.try_into()
}

/// Allows a call whose argument number `arg` compares to `value` as `how` says.
fn rule(arg: u8, how: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(arg, SeccompCmpArgLen::Dword, how, value)?])
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::IsTerminal;
    use std::net::UdpSocket;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};

    use super::*;

    /// What a restricted thread tries to do, and whether its process survives that.
    type Attempt = (&'static str, Thread, fn(), bool);

    const ATTEMPTS: [Attempt; 7] = [
        ("allocate", Thread::Api, || drop(std::hint::black_box(vec![1u8; 8 << 20])), true),
        ("open", Thread::Api, || drop(File::open("/dev/null")), false),
        ("open", Thread::Main, || drop(File::open("/dev/null")), true),
        ("ask a terminal", Thread::Main, || _ = std::io::stdin().is_terminal(), false),
        ("network", Thread::Main, || drop(UdpSocket::bind("127.0.0.1:0")), false),
        ("spawn", Thread::Main, || drop(std::thread::spawn(|| ()).join()), true),
        ("spawn", Thread::Vcpu, || drop(std::thread::spawn(|| ()).join()), false),
    ];
    const WHICH: &str = "WRENN_TEST_SECCOMP_ATTEMPT";

    /// Runs in a process of its own, started by the test below.
    #[test]
    fn attempt() {
        let Ok(which) = std::env::var(WHICH) else { return };
        let (_, thread, act, _) = ATTEMPTS[which.parse::<usize>().unwrap()];
        apply(thread).unwrap();
        act();
        // The test harness itself would need more than is allowed.
        std::process::exit(0);
    }

    fn outcome(which: usize) -> ExitStatus {
        #[allow(clippy::disallowed_methods)] // A filter cannot be lifted, so each needs a process of its own.
        let mut command = Command::new(std::env::current_exe().unwrap());
        let args = ["--exact", "seccomp::tests::attempt", "--test-threads", "1"];
        command.args(args).env(WHICH, which.to_string()).output().unwrap().status
    }

    #[test]
    fn each_thread_may_do_its_work_and_nothing_else() {
        for (index, (what, thread, _, survives)) in ATTEMPTS.into_iter().enumerate() {
            let status = outcome(index);
            match survives {
                true => assert!(status.success(), "{what} in {thread:?}: {status}"),
                false => assert_eq!(status.signal(), Some(libc::SIGSYS), "{what} in {thread:?}: {status}"),
            }
        }
    }
}
