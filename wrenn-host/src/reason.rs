//! Why a host refused a call: what travels as an error's detail.

use connectrpc::{ConnectError, ErrorCode, ErrorDetail};

use crate::pb;

/// The type of an error's detail on the wire.
const DETAIL: &str = "wrenn.host.v1.ErrorInfo";

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $wire:ident, $code:ident;)*) => {
        /// Why a host refused a call, or failed in it, for programs that decide.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            fn wire(self) -> pb::Reason {
                match self {
                    $(Self::$name => pb::Reason::$wire,)*
                }
            }

            fn code(self) -> ErrorCode {
                match self {
                    $(Self::$name => ErrorCode::$code,)*
                }
            }
        }
    };
}

reasons! {
    /// No token, or one that is not valid.
    Unauthenticated = REASON_UNAUTHENTICATED, Unauthenticated;
    /// The request cannot be served, here or anywhere.
    InvalidArgument = REASON_INVALID_ARGUMENT, InvalidArgument;
    /// There is no such sandbox.
    NoSuchSandbox = REASON_NO_SUCH_SANDBOX, NotFound;
    /// There is no such template.
    NoSuchTemplate = REASON_NO_SUCH_TEMPLATE, NotFound;
    /// There is no such image.
    NoSuchImage = REASON_NO_SUCH_IMAGE, NotFound;
    /// The id or the name is taken by something else.
    AlreadyExists = REASON_ALREADY_EXISTS, AlreadyExists;
    /// The sandbox is there, but does not run.
    NotRunning = REASON_NOT_RUNNING, FailedPrecondition;
    /// Something else is being done with it; ask again.
    Busy = REASON_BUSY, Aborted;
    /// The host drains, and takes no new sandboxes.
    Draining = REASON_DRAINING, Unavailable;
    /// The host has no more of something: memory, disk, connections.
    Exhausted = REASON_EXHAUSTED, ResourceExhausted;
    /// Nobody in the guest listens on the port.
    PortClosed = REASON_PORT_CLOSED, Unavailable;
    /// The guest ended.
    GuestEnded = REASON_GUEST_ENDED, FailedPrecondition;
    /// The host lacks a device, a permission or a program.
    HostUnfit = REASON_HOST_UNFIT, Unavailable;
    /// What is stored is damaged.
    Corrupt = REASON_CORRUPT, DataLoss;
    /// Something did not answer in time.
    TimedOut = REASON_TIMED_OUT, DeadlineExceeded;
    /// The guest's agent failed.
    Agent = REASON_AGENT, Internal;
    /// It was done, but something was left on the host that could not be removed.
    Cleanup = REASON_CLEANUP, Internal;
    /// The host failed in a way that it has no word for.
    Internal = REASON_INTERNAL, Internal;
}

impl Reason {
    /// An error as it travels.
    pub(crate) fn error(self, message: impl Into<String>) -> ConnectError {
        let info = pb::ErrorInfo { reason: self.wire().into() };
        ConnectError::new(self.code(), message).with_detail(ErrorDetail::from_message(DETAIL, &info))
    }

    /// What an error that travelled means. A code alone has to do where no detail came along, or one of a newer host.
    pub(crate) fn of(error: &ConnectError) -> Self {
        let detail = error.details.iter().find(|detail| detail.type_url.ends_with(DETAIL));
        let told = detail.and_then(|detail| {
            use base64::Engine as _;
            use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
            let value = detail.value.as_deref()?;
            let bytes = STANDARD_NO_PAD.decode(value).or_else(|_| STANDARD.decode(value)).ok()?;
            let info = <pb::ErrorInfo as buffa::Message>::decode_from_slice(&bytes).ok()?;
            let wire = info.reason.as_known()?;
            Self::ALL.iter().copied().find(|reason| reason.wire() == wire)
        });
        told.unwrap_or(match error.code {
            ErrorCode::Unauthenticated => Self::Unauthenticated,
            ErrorCode::InvalidArgument => Self::InvalidArgument,
            ErrorCode::AlreadyExists => Self::AlreadyExists,
            ErrorCode::Aborted => Self::Busy,
            ErrorCode::ResourceExhausted => Self::Exhausted,
            ErrorCode::DeadlineExceeded => Self::TimedOut,
            _ => Self::Internal,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        for reason in Reason::ALL {
            let json = serde_json::to_vec(&reason.error("m")).unwrap();
            let error: ConnectError = serde_json::from_slice(&json).unwrap();
            assert_eq!(Reason::of(&error), *reason, "{}", String::from_utf8_lossy(&json));
        }
    }

    #[test]
    fn a_code_alone_and_a_hostile_detail_mean_something() {
        assert_eq!(Reason::of(&ConnectError::unauthenticated("m")), Reason::Unauthenticated);
        for value in ["", "!", "CP8B", "/////w"] {
            let detail = ErrorDetail { type_url: DETAIL.into(), value: Some(value.into()), debug: None };
            let error = ConnectError::aborted("m").with_detail(detail);
            assert_eq!(Reason::of(&error), Reason::Busy, "{value}");
        }
    }
}
