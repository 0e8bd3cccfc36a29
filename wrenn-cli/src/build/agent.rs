//! The agent's binary, as it goes into the initramfs.

use std::fs;
use std::path::{Path, PathBuf};

use object::elf::{EM_X86_64, FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, LittleEndian};
use wrenn_core::image::Digest;

use super::BuildError;

const NAME: &str = "wrenn-agent";
/// Where Cargo puts binaries for an explicit target; a static agent needs one, so that proc macros stay dynamic.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The agent.
#[derive(Debug)]
pub(crate) struct Agent {
    /// The digest of its file as it was found.
    pub(crate) digest: Digest,
    /// The program without what only debuggers read: that would be guest memory, in every guest.
    pub(crate) program: Vec<u8>,
}

impl Agent {
    /// Loads the agent: from `explicit`, else from `WRENN_AGENT`, else from where Cargo or an installation puts it.
    ///
    /// # Errors
    /// [`BuildError::NoAgent`], or [`BuildError::BadAgent`] for what could not run as a guest's first process.
    pub(crate) fn find(explicit: Option<&Path>) -> Result<Self, BuildError> {
        let named =
            explicit.map(PathBuf::from).or_else(|| std::env::var_os("WRENN_AGENT").map(PathBuf::from));
        let candidates = match named {
            Some(path) => vec![path],
            None => candidates(&std::env::current_exe().unwrap_or_default()),
        };
        match candidates.iter().find(|path| path.is_file()) {
            Some(path) => Self::load(path),
            None => {
                let looked: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
                Err(BuildError::NoAgent { looked: looked.join(", ") })
            }
        }
    }

    fn load(path: &Path) -> Result<Self, BuildError> {
        let file = fs::read(path).map_err(BuildError::io("read", path))?;
        let digest = Digest::of(&file[..], &mut |_| ()).map_err(BuildError::io("read", path))?;
        let program =
            loadable(&file).map_err(|reason| BuildError::BadAgent { path: path.to_owned(), reason })?;
        Ok(Self { digest, program })
    }
}

/// Where an agent may lie that belongs to the program `exe`: where Cargo puts a static one, or beside it.
///
/// Beside it comes last: in a Cargo target directory that is a dynamically linked one, made for tests.
fn candidates(exe: &Path) -> Vec<PathBuf> {
    let Some(dir) = exe.parent() else { return Vec::new() };
    // target/debug/wrenn -> target/TARGET/debug/wrenn-agent; a test's program lies one deeper, in deps/.
    let profiles = [Some(dir), dir.parent()].into_iter().flatten();
    profiles
        .filter_map(|profile| Some(profile.parent()?.join(TARGET).join(profile.file_name()?).join(NAME)))
        .chain([dir.join(NAME)])
        .collect()
}

/// The part of a static x86-64 program that the kernel loads, as a program of its own.
///
/// Symbols and debug information lie behind the last segment, and only the section table leads to them.
fn loadable(file: &[u8]) -> Result<Vec<u8>, &'static str> {
    let header = FileHeader64::<Endianness>::parse(file).map_err(|_| "it is not a 64-bit program")?;
    let endian = header.endian().map_err(|_| "it is not a 64-bit program")?;
    if endian != Endianness::Little || header.e_machine(endian) != EM_X86_64 {
        return Err("it is for another kind of machine");
    }
    let segments = header.program_headers(endian, file).map_err(|_| "it has no segments")?;
    if segments.iter().any(|segment| segment.p_type(endian) == PT_INTERP) {
        return Err("it is dynamically linked, and the initramfs has no libraries: build it with \
                    `-C target-feature=+crt-static` for an explicit --target");
    }
    let table_end = header.e_phoff.get(endian) + size_of_val(segments) as u64;
    let end = segments
        .iter()
        .map(|segment| segment.p_offset(endian).saturating_add(segment.p_filesz(endian)))
        .fold(table_end, u64::max);
    let mut program =
        usize::try_from(end).ok().and_then(|end| file.get(..end)).ok_or("it is truncated")?.to_vec();
    let (header, _) =
        object::from_bytes_mut::<FileHeader64<LittleEndian>>(&mut program).map_err(|()| "it is truncated")?;
    header.e_shoff.set(LittleEndian, 0);
    header.e_shnum.set(LittleEndian, 0);
    header.e_shstrndx.set(LittleEndian, 0);
    Ok(program)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn candidates_follow_cargo_and_installations() {
        let found = candidates(Path::new("/x/target/debug/wrenn"));
        assert_eq!(found[0], Path::new("/x/target/x86_64-unknown-linux-gnu/debug/wrenn-agent"));
        assert_eq!(found.last().unwrap(), Path::new("/x/target/debug/wrenn-agent"));
        let found = candidates(Path::new("/x/target/debug/deps/test-123"));
        assert!(found.contains(&"/x/target/x86_64-unknown-linux-gnu/debug/wrenn-agent".into()));
    }

    #[test]
    fn what_cannot_be_a_first_process_is_refused() {
        // This very test is dynamically linked.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(loadable(&own).unwrap_err().contains("dynamically linked"));
        assert!(loadable(b"#!/bin/sh").is_err());
        assert!(loadable(&own[..40]).is_err());
        let mut other = own.clone();
        other[18] = 183;
        assert_eq!(loadable(&other), Err("it is for another kind of machine"));
    }

    /// The loadable part of a static program still runs, and is less.
    #[test]
    fn the_loadable_part_is_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let (source, program) = (dir.path().join("a.c"), dir.path().join("a"));
        fs::write(&source, "int main(void) { return 42; }\n").unwrap();
        #[allow(clippy::disallowed_methods, reason = "a test")]
        let run =
            |program: &Path, args: &[&str]| std::process::Command::new(program).args(args).status().unwrap();
        let (source, output) = (source.to_str().unwrap(), program.to_str().unwrap());
        assert!(run(Path::new("cc"), &["-static", "-g", "-o", output, source]).success());
        let whole = fs::read(&program).unwrap();
        let loadable = loadable(&whole).unwrap();
        assert!(loadable.len() < whole.len());
        let trimmed = dir.path().join("trimmed");
        fs::write(&trimmed, loadable).unwrap();
        fs::set_permissions(&trimmed, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(run(&trimmed, &[]).code(), Some(42));
    }
}
