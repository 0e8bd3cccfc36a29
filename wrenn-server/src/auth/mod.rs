//! Who calls, and what they may do.
//!
//! People log in with a password (Argon2id) and get an access token (a JWT, for minutes) and a refresh token (random,
//! traded for the next one at each use). Programs show an API key. Of whatever is random only the SHA-256 is stored.

mod access_token;
mod caller;
mod limit;
mod password;
mod secret_text;

pub(crate) use self::access_token::AccessTokens;
pub(crate) use self::caller::{Actor, HostItself, Member, OfTeam, Operator, Peer, PeerAddress, Session};
pub(crate) use self::limit::Limits;
pub(crate) use self::password::{LEAST_CHARS, MOST_BYTES, PasswordRefused, Passwords};
pub(crate) use self::secret_text::{SecretText, digest, random_secret};

/// What a member of a team may do; each includes the ones before it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Works with sandboxes, templates and snapshots.
    Member,
    /// Makes keys and invitations, and takes members out.
    Admin,
    /// Makes admins and owners.
    Owner,
}

impl Role {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    /// The role that the database has. It lets no other through, and if it did, it would be the least.
    pub(crate) fn from_stored(text: &str) -> Self {
        match text {
            "owner" => Self::Owner,
            "admin" => Self::Admin,
            _ => Self::Member,
        }
    }
}
