//! The terminal that the command was typed at, lent to a guest's.

use std::io::{IsTerminal as _, stdin};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use wrenn_agent_api::TerminalSize;

/// The terminal's size now.
pub(crate) fn size() -> TerminalSize {
    match tcgetwinsize(stdin()) {
        Ok(found) if found.ws_col > 0 && found.ws_row > 0 => {
            TerminalSize { columns: found.ws_col, rows: found.ws_row }
        }
        _ => TerminalSize::default(),
    }
}

/// Keys go to the guest as they are pressed, Ctrl-C among them, for as long as this lives.
#[derive(Debug)]
pub(crate) struct RawMode(Termios);

impl RawMode {
    /// Begins; `None` where standard input is no terminal.
    ///
    /// # Errors
    /// The terminal refuses.
    pub(crate) fn begin() -> std::io::Result<Option<Self>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no repair.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.0);
    }
}
