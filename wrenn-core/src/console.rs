//! The end of a guest's console, for error messages.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

const TAIL_BYTES: u64 = 4096;
const TAIL_LINES: usize = 20;

/// The last lines of the console log at `path`, made safe to print: a guest wrote them. Empty if there are none.
pub(crate) fn tail(path: &Path) -> String {
    match end(path, TAIL_BYTES) {
        Ok(bytes) => last_lines(&String::from_utf8_lossy(&bytes)),
        Err(_) => String::new(),
    }
}

/// The last bytes of the console log at `path`, at most `most`, as they are.
pub(crate) fn end(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(most);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    // It may have grown since.
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
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
    fn the_end_is_bounded_and_as_it_was_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"abc\x1b\xff").unwrap();
        assert_eq!(end(file.path(), 3).unwrap(), b"c\x1b\xff");
        assert_eq!(end(file.path(), 100).unwrap(), b"abc\x1b\xff");
        assert_eq!(end(file.path(), 0).unwrap(), b"");
        assert!(end(Path::new("/nonexistent/console"), 1).is_err());
    }

    #[test]
    fn a_missing_log_is_an_empty_tail() {
        assert_eq!(tail(Path::new("/nonexistent/console")), "");
    }
}
