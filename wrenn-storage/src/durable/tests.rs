use super::*;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_committed_file_replaces_and_a_dropped_one_vanishes() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("state");
    write(&target, b"old").unwrap();
    let staged = StagedFile::create(&target).unwrap();
    staged.file().write_all(b"half").unwrap();
    assert!(staged.path().exists());
    drop(staged);
    assert_eq!(fs::read(&target).unwrap(), b"old");
    write(&target, b"new").unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"new");
    assert_eq!(names(dir.path()), ["state"]);
}

#[test]
fn a_committed_directory_never_replaces() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    for (content, committed) in [("first", true), ("second", false)] {
        let staged = StagedDir::create(&target).unwrap();
        fs::create_dir(staged.path().join("sub")).unwrap();
        fs::write(staged.path().join("sub/file"), content).unwrap();
        let result = staged.commit();
        assert_eq!(result.is_ok(), committed);
        if let Err(e) = result {
            assert_eq!(e.kind(), io::ErrorKind::AlreadyExists);
        }
    }
    assert_eq!(fs::read(target.join("sub/file")).unwrap(), b"first");
    assert_eq!(names(dir.path()), ["image"]);
}

#[test]
fn a_new_file_gets_a_free_name_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("image");
    let committed = |content: &[u8]| {
        let staged = StagedFile::create(&target).unwrap();
        staged.file().write_all(content).unwrap();
        staged.commit_new()
    };
    committed(b"first").unwrap();
    assert_eq!(committed(b"second").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&target).unwrap(), b"first");
    assert_eq!(names(dir.path()), ["image"]);
}

#[test]
fn a_sweep_removes_leftovers_and_spares_living_writers() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".staged-0-file"), b"crashed").unwrap();
    fs::create_dir(dir.path().join(".staged-1-dir")).unwrap();
    fs::write(dir.path().join(".staged-1-dir/part"), b"crashed").unwrap();
    fs::write(dir.path().join("kept"), b"").unwrap();
    let living = StagedFile::create(&dir.path().join("file")).unwrap();
    let living_dir = StagedDir::create(&dir.path().join("dir")).unwrap();
    assert_eq!(sweep(dir.path()).unwrap(), 2);
    living.file().write_all(b"done").unwrap();
    living.commit().unwrap();
    living_dir.commit().unwrap();
    assert_eq!(names(dir.path()), ["dir", "file", "kept"]);
    assert_eq!(sweep(dir.path()).unwrap(), 0);
}

#[test]
fn rename_and_remove_are_plain_in_their_effect() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::write(&from, b"x").unwrap();
    rename(&from, &to).unwrap();
    assert_eq!(names(dir.path()), ["to"]);
    remove(&to).unwrap();
    remove(&to).unwrap();
    assert!(names(dir.path()).is_empty());
    assert_eq!(rename(&from, &to).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_target_without_a_name_is_refused() {
    assert!(StagedFile::create(Path::new("/")).is_err());
    assert!(StagedFile::create(Path::new("/nonexistent-dir/x")).is_err());
}
