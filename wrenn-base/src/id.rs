//! Identifiers, valid by construction.
//!
//! Sandbox and host ids become DNS labels, device names, namespace names and cgroup names, so they are
//! lower-case letters and digits only, of a fixed length.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// A text that cannot be used as an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind}: {rule}")]
#[non_exhaustive]
pub struct InvalidId {
    /// What the text was meant to be, for example "sandbox id".
    pub kind: &'static str,
    /// The rule that such identifiers follow.
    pub rule: &'static str,
    /// The refused text.
    pub text: String,
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $len:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The number of characters of every such id.
            pub const LEN: usize = $len;

            /// A fresh id from the system's random source.
            ///
            /// # Panics
            /// Where the operating system has no random source at all.
            pub fn random() -> Self {
                Self(random_text($len))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let valid = text.len() == $len && text.bytes().all(|b| ALPHABET.contains(&b));
                if !valid {
                    return Err(InvalidId {
                        kind: $kind,
                        rule: concat!("it is ", $len, " lower-case letters and digits"),
                        text: clip(text),
                    });
                }
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

random_id! {
    /// The identity of one sandbox, kept across pause and resume.
    SandboxId, "sandbox id", 16
}

random_id! {
    /// The identity of one host directory: every resource that its sandboxes hold on the machine
    /// (namespace, device, socket) carries it, so that orphans can be found.
    HostId, "host id", 6
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        ///
        /// It follows `^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$` and has no `..`: it becomes a directory's name, which is why
        /// nothing else is let in.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                match is_name(text) {
                    true => Ok(Self(text.to_owned())),
                    false => Err(InvalidId { kind: $kind, rule: NAME_RULE, text: clip(text) }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// The name of a registered image.
    ImageName, "image name"
}

name! {
    /// The name of a template: a snapshot that sandboxes are made from.
    TemplateName, "template name"
}

const NAME_RULE: &str =
    "it is 1 to 64 letters, digits, '.', '_' and '-', begins with a letter or digit, and has no '..'";

fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=64).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(allowed)
        && !text.contains("..")
}

/// Keeps an error message short whatever it was given.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

fn random_text(len: usize) -> String {
    let mut text = String::with_capacity(len);
    let mut bytes = [0u8; 32];
    while text.len() < len {
        getrandom::fill(&mut bytes).expect("the operating system has a random source");
        // 252 is the largest multiple of 36 in a byte: what lies above it would favour some letters.
        for b in bytes.iter().filter(|b| **b < 252).take(len - text.len()) {
            text.push(char::from(ALPHABET[usize::from(b % 36)]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_valid_and_differ() {
        let (a, b) = (SandboxId::random(), SandboxId::random());
        assert_ne!(a, b);
        assert_eq!(a.as_str().parse::<SandboxId>().unwrap(), a);
        assert_eq!(HostId::random().as_str().len(), HostId::LEN);
    }

    #[test]
    fn ids_refuse_whatever_could_leave_a_name() {
        for text in
            ["", "short", "0123456789abcdeF", "0123456789abcde/", "0123456789abcde\n", "0123456789abcdefg"]
        {
            let refused = text.parse::<SandboxId>().unwrap_err();
            assert_eq!(refused.text, text);
        }
    }

    #[test]
    fn names_follow_the_allow_list() {
        for text in ["debian", "Debian-12", "a", "0.1_x", &"a".repeat(64)] {
            assert!(text.parse::<ImageName>().is_ok(), "{text}");
            assert!(text.parse::<TemplateName>().is_ok(), "{text}");
        }
        for text in ["", ".", "..", "../etc", "a/b", "a..b", "-a", "_a", "ä", "a b", "a\0", &"a".repeat(65)]
        {
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
            let refused = text.parse::<TemplateName>().unwrap_err();
            assert_eq!(refused.kind, "template name");
        }
    }

    #[test]
    fn a_refused_text_is_clipped_in_the_message() {
        let refused = "x/".repeat(4000).parse::<ImageName>().unwrap_err();
        assert_eq!(refused.text.chars().count(), 80);
    }
}
