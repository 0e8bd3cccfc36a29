//! What a failed call tells its caller.

use std::error::Error as _;
use std::io;

use connectrpc::ConnectError;
use wrenn_base::SandboxId;
use wrenn_core::image::ImageError;
use wrenn_core::{Cause, Error, ErrorKind};

use crate::{Malformed, Reason};

/// An error of wrenn-core's, as it travels: what a program decides by, and the whole story for people.
pub(super) fn refusal(error: &Error) -> ConnectError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    reason(error).error(text)
}

fn reason(error: &Error) -> Reason {
    match error.cause() {
        Cause::NoSuchSandbox { .. } => return Reason::NoSuchSandbox,
        Cause::NoSuchTemplate { .. } => return Reason::NoSuchTemplate,
        Cause::Image(ImageError::NotFound { .. }) => return Reason::NoSuchImage,
        Cause::SandboxExists { .. } | Cause::TemplateExists { .. } => return Reason::AlreadyExists,
        Cause::NotRunning { .. } | Cause::Expired { .. } => return Reason::NotRunning,
        Cause::Port { .. } => return Reason::PortClosed,
        _ if is_full(error) => return Reason::Exhausted,
        _ => {}
    }
    match error.kind() {
        ErrorKind::InvalidInput => Reason::InvalidArgument,
        ErrorKind::HostUnfit => Reason::HostUnfit,
        ErrorKind::Corrupt => Reason::Corrupt,
        ErrorKind::TimedOut => Reason::TimedOut,
        ErrorKind::GuestEnded => Reason::GuestEnded,
        ErrorKind::Agent => Reason::Agent,
        ErrorKind::Cleanup => Reason::Cleanup,
        ErrorKind::Busy => Reason::Busy,
        _ => Reason::Internal,
    }
}

/// Whether the disk, or a quota, is full.
fn is_full(error: &Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            return true;
        }
        source = cause.source();
    }
    false
}

pub(super) fn malformed(error: Malformed) -> ConnectError {
    Reason::InvalidArgument.error(error.to_string())
}

pub(super) fn no_such_sandbox(id: &SandboxId) -> ConnectError {
    Reason::NoSuchSandbox.error(format!("there is no sandbox {id} on this host"))
}

pub(super) fn not_running(id: &SandboxId) -> ConnectError {
    Reason::NotRunning.error(format!("sandbox {id} is not running"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_have_their_reasons() {
        let check = |cause: Cause, expected| {
            let error = refusal(&Error::from(cause));
            assert_eq!(Reason::of(&error), expected, "{error:?}");
        };
        let id = SandboxId::random();
        check(Cause::NoSuchSandbox { id: id.clone() }, Reason::NoSuchSandbox);
        check(Cause::SandboxExists { id: id.clone() }, Reason::AlreadyExists);
        check(Cause::SandboxBusy { id: id.clone() }, Reason::Busy);
        check(Cause::NotRunning { id: id.clone() }, Reason::NotRunning);
        check(Cause::NoSuchTemplate { name: "t".parse().unwrap() }, Reason::NoSuchTemplate);
        check(Cause::TemplateExists { name: "t".parse().unwrap() }, Reason::AlreadyExists);
        check(Cause::InvalidSpec { what: "vcpus", why: "w".into() }, Reason::InvalidArgument);
        let refused = io::ErrorKind::ConnectionRefused.into();
        check(Cause::Port { id, port: 80, source: refused }, Reason::PortClosed);
        let io = |kind: io::ErrorKind| Cause::Io { action: "write", path: "/x".into(), source: kind.into() };
        check(io(io::ErrorKind::StorageFull), Reason::Exhausted);
        check(io(io::ErrorKind::PermissionDenied), Reason::Internal);
    }

    #[test]
    fn the_whole_story_is_told() {
        let source = io::Error::other("the deepest reason");
        let error = refusal(&Error::from(Cause::Io { action: "write", path: "/x".into(), source }));
        assert_eq!(error.message.as_deref(), Some("could not write /x: the deepest reason"));
    }
}
