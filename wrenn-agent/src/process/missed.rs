//! What a command printed while nobody followed it: the last of it, and how much went before.

use std::collections::VecDeque;

use bytes::{Buf, BytesMut};

use super::outlet::{Channel, Event};

/// How much is kept of each command, in bytes.
const KEPT: usize = 256 * 1024;

/// How large a piece becomes by what comes after it from the same output: what one event of a terminal may carry.
const PIECE: usize = 16 * 1024;

const CHANNELS: [Channel; 3] = [Channel::Stdout, Channel::Stderr, Channel::Terminal];

/// See above. In the order in which it came, across outputs.
#[derive(Default)]
pub(super) struct Missed {
    pieces: VecDeque<(Channel, BytesMut)>,
    size: usize,
    /// Bytes that had to go, for each of `CHANNELS`.
    lost: [u64; CHANNELS.len()],
}

impl Missed {
    /// Adds what came; the oldest has to go where it becomes too much.
    pub(super) fn push(&mut self, channel: Channel, bytes: &[u8]) {
        match self.pieces.back_mut() {
            Some((last, piece)) if *last == channel && piece.len() + bytes.len() <= PIECE => {
                piece.extend_from_slice(bytes);
            }
            _ => self.pieces.push_back((channel, bytes.into())),
        }
        self.size += bytes.len();
        while self.size > KEPT
            && let Some((channel, piece)) = self.pieces.front_mut()
        {
            let channel = *channel;
            let part = piece.len().min(self.size - KEPT);
            piece.advance(part);
            if piece.is_empty() {
                self.pieces.pop_front();
            }
            self.size -= part;
            self.lose(channel, part as u64);
        }
    }

    /// Notes that so much of an output had to go.
    pub(super) fn lose(&mut self, channel: Channel, bytes: u64) {
        let lost = &mut self.lost[channel as usize];
        *lost = lost.saturating_add(bytes);
    }

    /// All of it, as events: what was lost, then what is left.
    pub(super) fn take(&mut self) -> VecDeque<Event> {
        let Self { pieces, lost, .. } = std::mem::take(self);
        let lost = CHANNELS.into_iter().zip(lost).filter(|(_, bytes)| *bytes > 0);
        let lost = lost.map(|(channel, bytes)| Event::Lost(channel, bytes));
        lost.chain(pieces.into_iter().map(|(channel, piece)| Event::Output(channel, piece.freeze())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_it_is_kept_and_the_rest_is_counted() {
        let mut missed = Missed::default();
        missed.push(Channel::Stderr, b"first");
        let lines: Vec<u8> = (0..100_000u32).flat_map(|n| format!("{n:07}\n").into_bytes()).collect();
        for piece in lines.chunks(1000) {
            missed.push(Channel::Stdout, piece);
        }
        let events = missed.take();
        let lost = (lines.len() - KEPT) as u64;
        assert!(matches!(events[0], Event::Lost(Channel::Stdout, bytes) if bytes == lost), "{:?}", events[0]);
        assert!(matches!(events[1], Event::Lost(Channel::Stderr, 5)));
        let mut kept = Vec::new();
        for event in events.iter().skip(2) {
            let Event::Output(Channel::Stdout, piece) = event else { panic!("{event:?}") };
            assert!(piece.len() <= PIECE);
            kept.extend_from_slice(piece);
        }
        assert!(kept == lines[lines.len() - KEPT..]);
        assert!(missed.take().is_empty());
    }

    #[test]
    fn small_pieces_become_large_ones_and_outputs_stay_in_order() {
        let size = |event: Event| match event {
            Event::Output(channel, piece) => (channel, piece.len()),
            other => panic!("{other:?}"),
        };
        let mut missed = Missed::default();
        for n in 0..3000u32 {
            missed.push(Channel::Stdout, &n.to_le_bytes());
        }
        for channel in [Channel::Stderr, Channel::Stdout] {
            missed.push(channel, b"x");
        }
        let sizes: Vec<_> = missed.take().into_iter().map(size).collect();
        assert_eq!(sizes, [(Channel::Stdout, 12_000), (Channel::Stderr, 1), (Channel::Stdout, 1)]);
    }
}
