//! Waiting for whoever still uses what is to go.

use std::io;
use std::time::Duration;

use wrenn_base::Deadline;

const SHORTEST: Duration = Duration::from_millis(2);
const LONGEST: Duration = Duration::from_millis(200);

/// Repeats `attempt`, less and less often, for as long as it is told "Device or resource busy" and the deadline has not
/// passed. Any other answer is returned at once, and there is one attempt at least.
pub(super) fn while_busy(deadline: Deadline, attempt: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    repeat(deadline, std::thread::sleep, attempt)
}

fn repeat(
    deadline: Deadline,
    mut sleep: impl FnMut(Duration),
    mut attempt: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let mut pause = SHORTEST;
    loop {
        match attempt() {
            Err(e) if is_busy(&e) && !deadline.passed() => sleep(pause.min(deadline.remaining())),
            result => return result,
        }
        pause = (pause * 2).min(LONGEST);
    }
}

pub(super) fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn os(code: i32) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(code))
    }

    fn far() -> Deadline {
        Deadline::after(Duration::from_secs(3600))
    }

    #[test]
    fn busy_is_tried_again_until_it_is_not() {
        let mut answers = [os(libc::EBUSY), os(libc::EBUSY), os(libc::EBUSY), Ok(())].into_iter();
        while_busy(far(), || answers.next().unwrap()).unwrap();
        assert!(answers.next().is_none());
    }

    #[test]
    fn nothing_else_is_tried_again() {
        for code in [libc::EIO, libc::ENXIO, libc::EPERM, libc::EAGAIN, libc::EINTR] {
            let mut attempts = 0;
            let mut attempt = || {
                attempts += 1;
                os(code)
            };
            assert_eq!(while_busy(far(), &mut attempt).unwrap_err().raw_os_error(), Some(code));
            assert_eq!(attempts, 1, "{code}");
        }
        let mut answers = [os(libc::EBUSY), os(libc::EIO), Ok(())].into_iter();
        let error = while_busy(far(), || answers.next().unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }

    #[test]
    fn the_deadline_ends_it_with_the_last_answer() {
        let (start, limit) = (Instant::now(), Duration::from_millis(60));
        let mut attempts = 0;
        let error = while_busy(Deadline::after(limit), || {
            attempts += 1;
            os(libc::EBUSY)
        });
        assert!(is_busy(&error.unwrap_err()));
        assert!(start.elapsed() >= limit, "it waited for as long as it might");
        // 2, 4, 8, 16 and 30 ms: waits that grow, the last of them cut. No more fit, however slow a machine is.
        assert!((2..=7).contains(&attempts), "{attempts} attempts");

        let mut attempts = 0;
        let passed = Deadline::after(Duration::ZERO);
        let mut attempt = || {
            attempts += 1;
            os(libc::EBUSY)
        };
        assert!(while_busy(passed, &mut attempt).is_err());
        assert_eq!(attempts, 1);
    }

    #[test]
    fn no_wait_is_longer_than_what_is_left() {
        let limit = Duration::from_millis(100);
        let mut waits = Vec::new();
        // Nothing sleeps, so the waits grow past the limit long before the deadline.
        let result = repeat(Deadline::after(limit), |wait| waits.push(wait), || os(libc::EBUSY));
        assert!(result.is_err());
        assert!(waits.len() > 7, "{} waits", waits.len());
        assert!(waits.iter().all(|wait| *wait <= limit));
    }
}
