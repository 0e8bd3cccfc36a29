//! What commands print: tables for people, with `--json` one JSON document for programs.

use std::io::{self, Write};

use serde::Serialize;

use crate::printable;

/// How results are to be printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

impl Format {
    /// Prints one result: as JSON in one line, or as `text` writes it.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(crate) fn print<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match self {
            Self::Json => {
                serde_json::to_writer(&mut out, value)?;
                writeln!(out)?;
            }
            Self::Text => out.write_all(text(value).as_bytes())?,
        }
        out.flush()
    }
}

/// Lines in columns, with a head.
pub(crate) struct Table {
    lines: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { lines: vec![head.map(str::to_owned).into()] }
    }

    pub(crate) fn line<const N: usize>(&mut self, cells: [String; N]) {
        self.lines.push(cells.iter().map(|cell| printable(cell).replace('\n', " ")).collect());
    }

    /// The table as text, each column as wide as its widest cell.
    pub(crate) fn render(&self) -> String {
        let columns = self.lines.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for line in &self.lines {
            let cells: Vec<_> =
                line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// How long ago, or how long still, in a word.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_strangers_texts_are_tamed() {
        let mut table = Table::new(["ID", "STATE"]);
        table.line(["a".into(), "x\u{1b}[2J\ny".into()]);
        table.line(["longer".into(), "running".into()]);
        assert_eq!(table.render(), "ID      STATE\na       x\u{fffd}[2J y\nlonger  running\n");
    }

    #[test]
    fn spans() {
        assert_eq!([59, 60, 7200, 200_000].map(span), ["59s", "1m", "2h", "2d"]);
    }
}
