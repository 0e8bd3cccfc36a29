//! Carries a command's output to its streams, and tells them the end when all of it is through.
//!
//! **When is it over?** The command's exit is not the end of its output: what it wrote last may still be in the
//! pipes, and its children may hold them open for as long as they like (`server &`). So, after the exit:
//! 1. what was in the pipes at that moment is delivered, however slow the readers are: that is everything that
//!    the command itself wrote;
//! 2. then stragglers (`foo | tee`, process substitution) get [`STRAGGLER_WAIT`] of waiting in total, and
//!    [`STRAGGLER_BYTES`]; mostly the pipes close at once;
//! 3. the end event follows; whatever is written later is read and thrown away, so that a server left in the
//!    background does not die of a closed pipe.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::Process;
use super::output::Output;
use crate::reaper::Exit;

/// How long, in total, the end waits for output that children of an ended command may still produce.
const STRAGGLER_WAIT: Duration = Duration::from_millis(200);

/// How many bytes of such output are still delivered.
const STRAGGLER_BYTES: usize = 1 << 20;

/// Carries everything, up to and including the end event.
pub(super) async fn run(process: &Process, mut output: Output) {
    let exit = carry_until_exit(process, &mut output).await;
    output.mark();
    carry_rest(process, &mut output).await;
    if output.is_open() {
        tokio::spawn(async move { while output.next().await.is_some() {} });
    }
    process.outlet.end(exit).await;
}

async fn carry_until_exit(process: &Process, output: &mut Output) -> Exit {
    let mut child = process.child.clone();
    loop {
        tokio::select! {
            // The exit first: a command whose children never stop writing still ends.
            biased;
            exit = child.wait() => return exit,
            piece = output.next() => match piece {
                Some((channel, bytes)) => process.outlet.send(channel, bytes).await,
                // It closed its output, or gave it away; it may run on for long.
                None => return child.wait().await,
            },
        }
    }
}

async fn carry_rest(process: &Process, output: &mut Output) {
    let mut patience = STRAGGLER_WAIT;
    let mut bytes_left = STRAGGLER_BYTES;
    while output.owes() || (!patience.is_zero() && bytes_left > 0) {
        let owed = output.owes();
        let asked = Instant::now();
        let piece = if owed {
            // It is in the pipe: this cannot hang.
            output.next().await
        } else {
            match timeout(patience, output.next()).await {
                Ok(piece) => piece,
                Err(_) => return,
            }
        };
        let Some((channel, bytes)) = piece else { return };
        if !owed {
            // Only the waiting counts, not what slow readers take.
            patience = patience.saturating_sub(asked.elapsed());
            bytes_left = bytes_left.saturating_sub(bytes.len());
        }
        process.outlet.send(channel, bytes).await;
    }
}
