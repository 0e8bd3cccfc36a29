//! The query of `/files`.

use hyper::Uri;
use percent_encoding::percent_decode_str;

use super::HttpError;

/// The parameters that `/files` knows; others are ignored.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) path: Option<String>,
    pub(super) username: Option<String>,
    pub(super) signature: Option<String>,
    pub(super) signature_expiration: Option<String>,
    /// A parameter that is not UTF-8.
    broken: bool,
}

impl Query {
    /// What a body says instead of a query.
    pub(super) fn given(path: Option<String>, username: Option<String>) -> Self {
        Self { path, username, ..Self::default() }
    }

    pub(super) fn of(uri: &Uri) -> Self {
        let mut query = Self::default();
        for pair in uri.query().unwrap_or("").split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (decode(name), decode(value)) else {
                query.broken = true;
                continue;
            };
            match name.as_str() {
                "path" => query.path = Some(value),
                "username" => query.username = Some(value),
                "signature" => query.signature = Some(value),
                "signature_expiration" => query.signature_expiration = Some(value),
                _ => {}
            }
        }
        query
    }

    /// The path, if one is given; it must be one that a file can have.
    pub(super) fn path(&self) -> Result<Option<&str>, HttpError> {
        if self.broken {
            return Err(HttpError::bad_request("the query is not UTF-8"));
        }
        match self.path.as_deref() {
            Some("") => Err(HttpError::bad_request("the path is empty")),
            Some(path) if path.contains('\0') => Err(HttpError::bad_request("a NUL character in the path")),
            path => Ok(path),
        }
    }
}

/// `%XX` and `+`, as in a form.
fn decode(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8().ok().map(|text| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::of(&format!("/files?{text}").parse().unwrap())
    }

    #[test]
    fn decodes_what_clients_send() {
        let full = query(
            "path=%2Fhome%2Fa+b%2B%C3%A4&username=bob&signature=v1_a%2Bb%3D&x=y&signature_expiration=5",
        );
        assert_eq!(full.path().unwrap(), Some("/home/a b+ä"));
        assert_eq!(full.username.as_deref(), Some("bob"));
        assert_eq!(full.signature.as_deref(), Some("v1_a+b="));
        assert_eq!(full.signature_expiration.as_deref(), Some("5"));
        assert_eq!(query("").path().unwrap(), None);
    }

    #[test]
    fn refuses_what_no_file_is_called() {
        for bad in ["path=", "path", "path=%00", "path=a%00b", "path=%FF", "x=%FF&path=/a"] {
            assert!(query(bad).path().is_err(), "{bad}");
        }
    }
}
