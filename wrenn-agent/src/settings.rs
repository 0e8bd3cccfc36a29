//! What the host told the agent: token, environment, defaults.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use subtle::ConstantTimeEq;
use wrenn_agent_api::AccessToken;

use crate::users::User;

/// Where programs are looked up, unless the host or the call says otherwise.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The values of the last `/init`.
#[derive(Default)]
pub(crate) struct Settings(Mutex<Values>);

#[derive(Default)]
struct Values {
    token: Option<AccessToken>,
    env: BTreeMap<String, String>,
    user: Option<String>,
    workdir: Option<String>,
}

/// A change of settings, checked; an absent field leaves things as they are.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) token: Option<AccessToken>,
    pub(crate) env: Option<BTreeMap<String, String>>,
    pub(crate) user: Option<String>,
    pub(crate) workdir: Option<String>,
}

/// A user that does not exist, or could not be looked up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("unknown user '{0}'")]
    Unknown(String),
    #[error("cannot look up user '{0}': {1}")]
    Lookup(String, std::io::Error),
}

impl Settings {
    /// Whether a token was ever set.
    pub(crate) fn is_claimed(&self) -> bool {
        self.lock().token.is_some()
    }

    /// The token, for what is signed with it.
    pub(crate) fn token(&self) -> Option<AccessToken> {
        self.lock().token.clone()
    }

    /// Whether `shown` is the token. Takes the same time wherever they differ. Never true before one is set.
    pub(crate) fn accepts(&self, shown: &[u8]) -> bool {
        self.lock().token.as_ref().is_some_and(|token| token.reveal().as_bytes().ct_eq(shown).into())
    }

    pub(crate) fn apply(&self, change: Change) {
        let mut values = self.lock();
        let empty_is_none = |text: String| (!text.is_empty()).then_some(text);
        if let Some(token) = change.token {
            values.token = Some(token);
        }
        if let Some(env) = change.env {
            values.env = env;
        }
        if let Some(user) = change.user {
            values.user = empty_is_none(user);
        }
        if let Some(workdir) = change.workdir {
            values.workdir = empty_is_none(workdir);
        }
    }

    /// The sandbox's own variables.
    pub(crate) fn env(&self) -> BTreeMap<String, String> {
        self.lock().env.clone()
    }

    /// The directory for commands that name none.
    pub(crate) fn workdir(&self) -> Option<String> {
        self.lock().workdir.clone()
    }

    /// The user that a call means: the one it names, else the default, else root.
    pub(crate) fn user(&self, named: Option<&str>) -> Result<User, UserError> {
        let default = || self.lock().user.clone().unwrap_or_else(|| "root".into());
        let name = named.filter(|name| !name.is_empty()).map_or_else(default, str::to_owned);
        match User::find(&name) {
            Ok(Some(user)) => Ok(user),
            Ok(None) => Err(UserError::Unknown(name)),
            Err(e) => Err(UserError::Lookup(name, e)),
        }
    }

    /// The environment of a command: who runs it, then the sandbox's variables, then its own; the last wins.
    pub(crate) fn command_env(
        &self,
        user: &User,
        own: impl IntoIterator<Item = (String, String)>,
    ) -> Vec<(String, String)> {
        let basics = [
            ("PATH", DEFAULT_PATH),
            ("HOME", user.home.as_str()),
            ("USER", user.name.as_str()),
            ("LOGNAME", user.name.as_str()),
        ];
        let mut env: BTreeMap<String, String> =
            basics.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        env.extend(self.env());
        env.extend(own);
        env.into_iter().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Values> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a name and value can be an environment variable.
pub(crate) fn is_env_pair(name: &str, value: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Change {
        Change { token: Some(AccessToken::new(text).unwrap()), ..Change::default() }
    }

    #[test]
    fn nothing_is_accepted_before_the_token_is_set() {
        let settings = Settings::default();
        assert!(!settings.is_claimed());
        assert!(!settings.accepts(b"") && !settings.accepts(b"x"));
        settings.apply(token("first"));
        assert!(settings.is_claimed() && settings.accepts(b"first"));
        assert!(!settings.accepts(b"firs") && !settings.accepts(b"first ") && !settings.accepts(b""));
        settings.apply(Change::default());
        assert!(settings.accepts(b"first"));
        settings.apply(token("second"));
        assert!(settings.accepts(b"second") && !settings.accepts(b"first"));
    }

    #[test]
    fn the_last_variable_wins() {
        let settings = Settings::default();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let env = [pair("A", "sandbox"), pair("B", "sandbox"), pair("HOME", "/srv")].into();
        settings.apply(Change { env: Some(env), ..Change::default() });
        let root = User::find("root").unwrap().unwrap();
        let env: BTreeMap<_, _> = settings.command_env(&root, [pair("B", "call")]).into_iter().collect();
        assert_eq!(env["A"], "sandbox");
        assert_eq!(env["B"], "call");
        assert_eq!(env["HOME"], "/srv");
        assert_eq!((env["USER"].as_str(), env["LOGNAME"].as_str()), ("root", "root"));
        assert_eq!(env["PATH"], DEFAULT_PATH);
    }

    #[test]
    fn variables_are_checked() {
        assert!(is_env_pair("A", "") && is_env_pair("a b", "x=y"));
        assert!(!is_env_pair("", "x") && !is_env_pair("A=B", "x") && !is_env_pair("A\0", "x"));
        assert!(!is_env_pair("A", "x\0"));
    }
}
