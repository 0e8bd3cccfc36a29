//! Named places at which a test can make the program fail, or die.
//!
//! Code calls [`point`] before and after each effect that outlives it (a rename, an fsync, a process). Without the
//! feature `fault-injection` that is nothing at all. With it a test first arms `Plan::Record` to learn which
//! points an operation passes, and then runs the operation once for each of them with `Plan::FailAt` or
//! `Plan::AbortAt`: no list of names has to be kept in step with the code.
//!
//! ```
//! use wrenn_base::fault;
//! fn rename(from: &std::path::Path, to: &std::path::Path) -> std::io::Result<()> {
//!     fault::point("example.rename")?;
//!     std::fs::rename(from, to)?;
//!     fault::point("example.renamed")
//! }
//! ```

#[cfg(feature = "fault-injection")]
pub use injection::{Plan, PlanGuard, arm, arm_from_env};

/// Passes the point `name`.
///
/// # Errors
/// Only if a test asked for it.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub fn point(_name: &'static str) -> std::io::Result<()> {
    Ok(())
}

/// Passes the point `name`.
///
/// # Errors
/// Only if a test asked for it.
#[cfg(feature = "fault-injection")]
pub fn point(name: &'static str) -> std::io::Result<()> {
    injection::pass(name)
}

#[cfg(feature = "fault-injection")]
mod injection {
    use std::io;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// What is to happen at which point, of all that this process passes in whatever thread, counted from 0.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Plan {
        /// Nothing: only remember the names.
        Record,
        /// The point with this number, and no other, is an error.
        FailAt(usize),
        /// The process dies at the point with this number, as if it had been killed: nothing is dropped.
        AbortAt(usize),
    }

    #[derive(Debug)]
    struct Armed {
        plan: Plan,
        passed: Vec<&'static str>,
    }

    static ARMED: Mutex<Option<Armed>> = Mutex::new(None);

    /// The plan is in force until this is dropped.
    #[derive(Debug)]
    #[must_use = "the plan ends with its guard"]
    pub struct PlanGuard(());

    impl PlanGuard {
        /// The names of the points that were passed so far, in order.
        pub fn passed(&self) -> Vec<&'static str> {
            armed().as_ref().map(|armed| armed.passed.clone()).unwrap_or_default()
        }
    }

    impl Drop for PlanGuard {
        fn drop(&mut self) {
            *armed() = None;
        }
    }

    /// Puts `plan` in force for the whole process, replacing any other.
    pub fn arm(plan: Plan) -> PlanGuard {
        *armed() = Some(Armed { plan, passed: Vec::new() });
        PlanGuard(())
    }

    /// Puts in force what `$WRENN_FAULT` says, for good: `abort:N` or `fail:N`; nothing where it is not set.
    ///
    /// # Panics
    /// If the variable says anything else: a test that misspells its plan must not pass.
    pub fn arm_from_env() {
        let Some(text) = std::env::var_os("WRENN_FAULT") else { return };
        let text = text.to_string_lossy();
        let plan = match text.split_once(':').map(|(kind, number)| (kind, number.parse())) {
            Some(("abort", Ok(number))) => Plan::AbortAt(number),
            Some(("fail", Ok(number))) => Plan::FailAt(number),
            _ => panic!("WRENN_FAULT={text}: abort:N or fail:N is meant"),
        };
        std::mem::forget(arm(plan));
    }

    fn armed() -> MutexGuard<'static, Option<Armed>> {
        ARMED.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pass(name: &'static str) -> io::Result<()> {
        let mut armed = armed();
        let Some(armed) = armed.as_mut() else { return Ok(()) };
        let number = armed.passed.len();
        armed.passed.push(name);
        match armed.plan {
            Plan::AbortAt(at) if at == number => {
                eprintln!("fault: the process dies at point {number}, {name}");
                std::process::abort();
            }
            Plan::FailAt(at) if at == number => {
                Err(io::Error::other(format!("injected fault at point {number}, {name}")))
            }
            _ => Ok(()),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::super::point;
        use super::*;

        #[test]
        fn points_are_counted_and_exactly_one_fails() {
            point("before").unwrap();
            let guard = arm(Plan::FailAt(1));
            point("first").unwrap();
            let error = point("second").unwrap_err();
            assert!(error.to_string().contains("point 1, second"), "{error}");
            point("third").unwrap();
            assert_eq!(guard.passed(), ["first", "second", "third"]);
            drop(guard);
            let guard = arm(Plan::Record);
            point("again").unwrap();
            assert_eq!(guard.passed(), ["again"]);
        }
    }
}
