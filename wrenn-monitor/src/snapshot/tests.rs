//! State files, whole and broken; no machine is needed for any of them.

use std::io::Write;

use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::devices::Serial;
use crate::output::Output;

fn state(vcpus: usize) -> MachineState {
    let output = Output::new(tempfile::tempfile().unwrap());
    MachineState {
        mem_size_mib: 128,
        smt: false,
        vm: VmState::sample(),
        vcpus: vec![VcpuState::sample(); vcpus],
        serial: Serial::new(EventFd::new(0).unwrap(), output).save(),
        virtio: Vec::new(),
    }
}

fn read(bytes: &[u8]) -> Result<MachineState, StateFileError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    MachineState::read(file.path())
}

#[test]
fn a_state_comes_back_as_it_was() {
    let bytes = state(2).to_bytes().unwrap();
    assert_eq!(read(&bytes).unwrap().to_bytes().unwrap(), bytes);
}

#[test]
fn a_well_formed_state_of_an_impossible_machine_is_refused() {
    let refused = |change: &dyn Fn(&mut MachineState)| {
        let mut state = state(1);
        change(&mut state);
        match read(&state.to_bytes().unwrap()) {
            Err(StateFileError::Invalid { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&|state| state.vcpus.clear()), LimitError::Vcpus { count: 0 }.into());
    assert_eq!(refused(&|state| state.mem_size_mib = 0), LimitError::NoMemory.into());
    let huge = refused(&|state| state.mem_size_mib = usize::MAX);
    assert!(matches!(huge, InvalidState::Limit(LimitError::MoreThanHost { .. })));
}

#[test]
fn a_file_that_no_state_takes_is_not_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(MAX_STATE + 1).unwrap();
    assert!(matches!(MachineState::read(file.path()), Err(StateFileError::TooLarge { .. })));
}

#[test]
fn a_sound_file_with_something_else_in_it_is_refused() {
    for body in [&b""[..], b"hello", &[0xff; 4096]] {
        assert!(matches!(read(&container::wrap(body)), Err(StateFileError::Encoding { .. })));
    }
}

#[test]
fn the_files_of_a_snapshot_are_two_and_not_those_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let request = |state: &str, memory: &str| SnapshotCreate {
        snapshot_type: Default::default(),
        snapshot_path: dir.path().join(state),
        mem_file_path: dir.path().join(memory),
    };
    std::fs::write(dir.path().join("base"), "guest memory").unwrap();
    std::os::unix::fs::symlink("base", dir.path().join("link")).unwrap();
    let base = FileId::of(&std::fs::metadata(dir.path().join("base")).unwrap());
    for (state, memory) in [("new", "base"), ("new", "link"), ("base", "new"), ("link", "new")] {
        let refused = Targets::open(&request(state, memory), Some(base)).unwrap_err();
        assert!(matches!(refused, TargetError::StillRead { .. }), "{refused}");
    }
    let refused = Targets::open(&request("new", "new"), None).unwrap_err();
    assert!(matches!(refused, TargetError::OneFile { .. }), "{refused}");
    assert!(matches!(Targets::open(&request("a/b", "new"), None), Err(TargetError::File(_))));
    // Opening changes nothing: a snapshot that is refused later leaves what was there.
    Targets::open(&request("link", "new"), None).unwrap();
    assert_eq!(std::fs::read(dir.path().join("base")).unwrap(), b"guest memory");
}

proptest! {
    #[test]
    fn no_altered_body_makes_the_reader_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut body = postcard::to_allocvec(&state(1)).unwrap();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        body.truncate(1 + cut.index(body.len()));
        // With a right checksum: what gets past it is all that counts here.
        let _ = read(&container::wrap(&body));
    }
}

/// The directory that the fuzzer of state files begins with.
fn corpus() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/state_file")
}

#[test]
fn every_file_of_the_corpus_is_taken_or_refused() {
    let mut inputs = 0;
    for entry in std::fs::read_dir(corpus()).unwrap() {
        let content = std::fs::read(entry.unwrap().path()).unwrap();
        fuzz(&content);
        // Cut anywhere, and with a byte gone wrong: bounded, so that it stays a test.
        for at in (0..content.len()).step_by(content.len() / 100 + 1) {
            fuzz(&content[..at]);
            let mut wrong = content.clone();
            wrong[at] ^= 0x11;
            fuzz(&wrong);
        }
        inputs += 1;
    }
    assert!(inputs >= 8, "{inputs} inputs: the corpus is gone");
}

/// Writes the corpus anew, after a change of the format.
#[test]
#[ignore = "it writes to the sources"]
fn write_corpus() {
    std::fs::create_dir_all(corpus()).unwrap();
    for vcpus in [0, 1, 2, 4] {
        let file = state(vcpus).to_bytes().unwrap();
        let body = container::unwrap(&file).unwrap();
        std::fs::write(corpus().join(format!("file-{vcpus}")), &file).unwrap();
        std::fs::write(corpus().join(format!("body-{vcpus}")), body).unwrap();
        std::fs::write(corpus().join(format!("cut-{vcpus}")), &body[..body.len() * 2 / 3]).unwrap();
    }
}
