//! Makes text of hostile origin fit to be shown: bounded, and without anything a terminal would obey.

/// The text without control characters (newline and tab stay) and without those that turn the
/// direction of writing around.
pub(crate) fn sanitise(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !(c.is_control() || turns_direction(*c))).collect()
}

/// At most `limit` characters of the text, on one line and sanitised.
pub(crate) fn clip_line(text: &str, limit: usize) -> String {
    let line: String = text.chars().take(limit).map(|c| if c == '\n' { ' ' } else { c }).collect();
    sanitise(&line)
}

/// Unicode's explicit bidirectional formatting characters (UAX #9, section 2).
fn turns_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_and_direction_characters_are_dropped() {
        assert_eq!(sanitise("a\x1b[31mb\r\n\tc\u{202e}d\u{9b}e\0"), "a[31mb\n\tcde");
        assert_eq!(clip_line("one\ntwo\x07three", 9), "one twot");
    }
}
