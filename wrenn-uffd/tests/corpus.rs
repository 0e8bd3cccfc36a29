//! What the fuzzer begins with, and what it found once, by an ordinary test.

use std::path::Path;

use wrenn_uffd::fuzzing::handshake;

#[test]
fn every_message_of_the_corpus_is_taken_or_refused() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/handshake");
    let mut inputs = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let content = std::fs::read(entry.unwrap().path()).unwrap();
        handshake(&content);
        // Cut anywhere, and with a byte gone wrong: bounded, so that it stays a test.
        for at in (0..content.len()).step_by(content.len() / 50 + 1) {
            handshake(&content[..at]);
            let mut wrong = content.clone();
            wrong[at] ^= 0x11;
            handshake(&wrong);
        }
        inputs += 1;
    }
    assert!(inputs >= 12, "{inputs} inputs: the corpus is gone");
}
