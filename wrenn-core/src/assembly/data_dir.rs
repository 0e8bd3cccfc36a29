//! The directory of a new sandbox's durable data.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use wrenn_base::{SandboxId, StepId, UndoList};

use crate::error::Cause;
use crate::step::unless_missing;

/// Makes a directory whose removal `undo` gets, unless it is there: then it is nobody's to remove.
pub(super) fn new_data_dir(id: SandboxId, dir: PathBuf, undo: &mut UndoList) -> Result<StepId, Cause> {
    let tree = dir.clone();
    let step =
        undo.push("the sandbox's data directory", move |_| Ok(unless_missing(fs::remove_dir_all(tree))?));
    match fs::create_dir(&dir) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            undo.forget(step);
            return Err(Cause::SandboxExists { id });
        }
        Err(source) => return Err(Cause::io("create", &dir, source)),
    }
    fs::set_permissions(&dir, Permissions::from_mode(0o700))
        .map_err(|source| Cause::io("create", &dir, source))?;
    Ok(step)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wrenn_base::Reaper;

    use super::*;

    #[test]
    fn anothers_data_is_neither_taken_nor_removed() {
        let (home, reaper) = (tempfile::tempdir().unwrap(), Reaper::start());
        let (id, dir) = (SandboxId::random(), home.path().join("one"));
        let mut first = UndoList::new(&reaper);
        new_data_dir(id.clone(), dir.clone(), &mut first).unwrap();
        fs::write(dir.join("precious"), "x").unwrap();

        let mut second = UndoList::new(&reaper);
        let refused = new_data_dir(id, dir.clone(), &mut second);
        assert!(matches!(refused, Err(Cause::SandboxExists { .. })));
        assert!(second.run(Duration::from_secs(1)).is_empty());
        assert!(dir.join("precious").exists());

        assert!(first.run(Duration::from_secs(1)).is_empty());
        assert!(!dir.exists());
    }
}
