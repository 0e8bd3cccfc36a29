//! An error as one line of text.

use std::error::Error;

/// An error with all that led to it, outermost first, in one line.
///
/// ```
/// let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
/// assert_eq!(wrenn_base::in_one_line(&missing), "entity not found");
/// ```
pub fn in_one_line(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("could not open")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_come_after_what_they_caused() {
        let error = Outer(std::io::ErrorKind::NotFound.into());
        assert_eq!(in_one_line(&error), "could not open: entity not found");
    }
}
