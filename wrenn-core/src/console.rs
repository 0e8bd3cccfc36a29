//! The end of a guest's console, for error messages.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

const TAIL_BYTES: u64 = 4096;
const TAIL_LINES: usize = 20;

/// The last lines of the console log at `path`, made safe to print: a guest wrote them. Empty if there are none.
pub(crate) fn tail(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        file.take(TAIL_BYTES).read_to_end(&mut bytes)
    });
    match read {
        Ok(_) => last_lines(&String::from_utf8_lossy(&bytes)),
        Err(_) => String::new(),
    }
}

fn last_lines(text: &str) -> String {
    let printable: String = text.chars().filter(|c| *c == '\n' || *c == '\t' || !c.is_control()).collect();
    let lines: Vec<&str> = printable.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_old_lines_are_left_out() {
        assert_eq!(last_lines("a\r\n\x1b[2Jb\n\n"), "a\n[2Jb");
        let many: String = (0..100).map(|n| format!("{n}\n")).collect();
        let tail = last_lines(&many);
        assert!(tail.starts_with("80\n") && tail.ends_with("99"));
    }

    #[test]
    fn a_missing_log_is_an_empty_tail() {
        assert_eq!(tail(Path::new("/nonexistent/console")), "");
    }
}
